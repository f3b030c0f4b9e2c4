"""What the help of each command says: one sentence, examples, the common options; Lightning's options in our words."""

from .help import Page

_CONFIG = "Configuration file, YAML or JSON. Of several, a later one replaces the keys of those before it."
_PRINT = "Configuration that results from all other options, printed; nothing else is done."
_JSON = "One JSON document on stdout in place of the table; all other lines go to stderr."
_EVERY = {
    "help": "Common options of this command.",
    "help-all": "List of all options of this command.",
    "debug": "Traceback of an error, besides its line; before or after the command.",
}
#: Options of the trainer, model and data, by their names without dashes.
TRAINER = {
    "config": _CONFIG,
    "print_config": _PRINT,
    "seed_everything": "Seed of weights, noise and order of the data, an integer of at least 0; false: none is set.",
    "ckpt_path": "Checkpoint: its file, or the folder of its run (the newest intact one there). last: the newest of "
    "this run, an error if there is none; auto: the same, or a new run if there is none.",
    "run": "Name of the run's folder under runs/, or under trainer.default_root_dir; default: from the name of the "
    "configuration file, with -2, -3 … if that is taken.",
    "init_from": "Checkpoint, or folder of a run, whose weights a new run starts from, at step 0; without --config its "
    "model and data too. Options: --init_from.weights raw, --init_from.skip ['output.*']. Default: random weights.",
    "expected": "Ranges of the metrics that the run should reach, for `verify`: {fid: {band: [3, 3.4], num_samples: "
    "1000, source: …}}; default: none.",
    "weights_only": "Restriction of checkpoints to tensors and plain values; it holds in any case.",
    "verbose": "Table of the metrics at the end.",
    "return_predictions": "Samples kept in memory by Lightning; they are written to files in any case.",
    "model": "Configuration file of this section alone, or class of another kind of model, such as NoisyClassifier.",
    "data": "Data module, such as Folder, CIFAR10 or Table.",
    "trainer": "Configuration file of this section alone.",
    "ema": "Configuration file of this section alone; false: no EMA weights.",
    "saver": "Configuration file of this section alone; false: no checkpoints on the way.",
    "guard": "Configuration file of this section alone; false: steps with NaN or infinite values are not skipped.",
    "doctor": "Configuration file of this section alone; false: no checks before step 1.",
    "trainer.accelerator": "Kind of device: cpu, gpu (or cuda), mps, or auto: a GPU where there is one.",
    "trainer.strategy": "Way to train on several devices: auto, ddp, ddp_spawn; strategies that shard are refused.",
    "trainer.devices": "Number of devices, or list of their numbers, such as [0, 2]; auto: all of the accelerator.",
    "trainer.num_nodes": "Number of machines, at least 1.",
    "trainer.precision": "Number format of the training: 32-true, bf16-mixed, 16-mixed, bf16-true or 64-true; "
    "default: 32-true.",
    "trainer.logger": "Logger, such as TensorBoardLogger, WandbLogger or MLFlowLogger, or false; default: "
    "TensorBoardLogger.",
    "trainer.callbacks": "Callbacks, such as ImagePanels, a list of classes with their options. "
    "--trainer.callbacks+=NAME adds one to those of the configuration.",
    "trainer.fast_dev_run": "Number of batches of a trial that runs all parts and saves nothing; true: 1.",
    "trainer.max_epochs": "Number of epochs after which the run ends; -1: no limit.",
    "trainer.min_epochs": "Number of epochs that the run takes at least, whatever a callback says.",
    "trainer.max_steps": "Number of optimizer steps after which the run ends, from its very beginning; -1: no limit.",
    "trainer.min_steps": "Number of optimizer steps that the run takes at least, whatever a callback says.",
    "trainer.max_time": "Duration after which the run ends, days:hours:minutes:seconds, such as 00:12:00:00; default: "
    "no limit.",
    "trainer.limit_train_batches": "Number of training batches of an epoch, or a fraction of them (0.1); default: all.",
    "trainer.limit_val_batches": "Number of batches of a validation, or a fraction of them (0.1); default: all.",
    "trainer.limit_test_batches": "Number of batches of a test, or a fraction of them (0.1); default: all.",
    "trainer.limit_predict_batches": "Number of batches of a prediction, or a fraction of them; default: all.",
    "trainer.overfit_batches": "Number of batches, or fraction, that train and validate alone, to see a model "
    "overfit; 0: off.",
    "trainer.val_check_interval": "Number of optimizer steps between two validations; a fraction below 1 is of an "
    "epoch.",
    "trainer.check_val_every_n_epoch": "Number of epochs between two validations; none: val_check_interval counts "
    "steps.",
    "trainer.num_sanity_val_steps": "Number of validation batches before the first step; -1: all.",
    "trainer.log_every_n_steps": "Number of optimizer steps between two values in the logger.",
    "trainer.enable_checkpointing": "Lightning's own ModelCheckpoint where no callback is one; saver saves checkpoints "
    "in any case. Default: true.",
    "trainer.enable_progress_bar": "Progress bar; default: true.",
    "trainer.enable_model_summary": "Lightning's table of the model's layers.",
    "trainer.accumulate_grad_batches": "Number of batches whose gradients make one optimizer step, at least 1.",
    "trainer.gradient_clip_val": "Bound on the gradient, its norm unless gradient_clip_algorithm is value, such as "
    "1.0; default: none.",
    "trainer.gradient_clip_algorithm": "Way to clip: norm (of all gradients) or value (each number); default: norm.",
    "trainer.deterministic": "Deterministic algorithms only (slower); warn: a warning where there is none. "
    "Default: false.",
    "trainer.benchmark": "Trial of cuDNN's algorithms for each size (faster for fixed sizes); default: torch's.",
    "trainer.inference_mode": "Validation in torch.inference_mode; likelihood needs false.",
    "trainer.use_distributed_sampler": "Distribution of the data to processes by Lightning; the loaders here do it "
    "themselves.",
    "trainer.profiler": "Profiler: simple, advanced, pytorch, or a class; default: none.",
    "trainer.detect_anomaly": "Name of the operation whose gradient is NaN, searched by torch (slow).",
    "trainer.barebones": "Run without everything that costs time besides the steps, to measure their speed.",
    "trainer.plugins": "Plugins of Lightning, a list of classes; default: none besides ours.",
    "trainer.sync_batchnorm": "Batch norms with statistics over all processes.",
    "trainer.reload_dataloaders_every_n_epochs": "Number of epochs after which loaders are made again; 0: never.",
    "trainer.default_root_dir": "Folder that runs are saved under, as DIR/RUN; default: runs.",
    "trainer.enable_autolog_hparams": "Hyper-parameters sent to the logger by Lightning.",
    "trainer.model_registry": "Name of a model in Lightning's online registry; default: none.",
}
#: Those of the short help; a name with a text is of a part whose class is not known before the options are read.
_SHARED = {
    "config": "",
    "run NAME": TRAINER["run"],
    "ckpt_path PATH|last|auto": f"{TRAINER['ckpt_path']} (default: none)",
}
_DATA = {
    "data": "",
    "data.batch_size N": "Number of examples per batch, over all devices (default: of the data's class, 32 or 128)",
    "data.OPTION VALUE": "Option of the data's class, such as --data.path FOLDER; list: --data.help Folder",
}
_MACHINE = {
    "trainer.devices": "",
    "trainer.accelerator": "",
    "trainer.precision": "",
}
_LAST = {
    "seed_everything": "",
    "print_config": "",
    "help": "",
    "help-all": "",
    "debug": _EVERY["debug"],
}
_FIT = {
    **_SHARED,
    "init_from PATH": TRAINER["init_from"],
    "trainer.max_steps": "",
    "trainer.max_time": "",
    **_MACHINE,
    "trainer.accumulate_grad_batches": "",
    "trainer.gradient_clip_val": "",
    "trainer.val_check_interval": "",
    "trainer.log_every_n_steps": "",
    "trainer.logger": "",
    "model.network": "",
    "model.schedule": "",
    "model.parameterization": "",
    "model.loss": "",
    "model.loss.teacher PATH": "Checkpoint or run that a flow map learns from; --model.loss.teacher.scale 2 guides it",
    "model.sampler": "",
    "model.optimizer.lr X": "Learning rate of the optimizer, such as 1e-4 (default: the optimizer's)",
    "model.lr_scheduler": "",
    "model.compile": "",
    **_DATA,
    "ema false": "EMA weights switched off; --ema.decays '[0.999, 0.9999]' gives their decays (default: [0.999])",
    "ema.stds LIST": "Widths of power-function EMA weights: with '[0.05, 0.1]' `average` makes any other (default: [])",
    "saver.every_n_steps": "",
    "guard false": "Guard switched off: steps with NaN or infinite values are not skipped (default: skipped)",
    "doctor false": "Doctor switched off: no checks before step 1 (default: errors stop the run)",
    **_LAST,
}
_USAGE = "{} --config FILE [--config FILE …] [--OPTION VALUE …]"
_DIGITS = "digits/vp"


def _trainer_page(command: str, about: str, examples: tuple[str, ...], common: dict[str, str]) -> Page:
    classes = ("--data.help Folder", "--model.network.help UNet")
    return Page(about, _USAGE.format(command), examples, common, classes, {**TRAINER, **_EVERY, "json": _JSON})


_OF_A_CHECKPOINT = {**_SHARED, **_MACHINE, **_DATA, **_LAST}
_TOOL = {**_EVERY, "config": "YAML file with values of these options.", "print_config": _PRINT, "json": _JSON}
_TAIL = {"json": "", "help": "", "help-all": ""}


def _tool_page(command: str, about: str, usage: str, examples: tuple[str, ...], common: str = "") -> Page:
    names = dict.fromkeys(common.split(), "") | _TAIL if common else {}
    classes = ("--sampler.help DPMpp",) if "sampler" in common.split() or command in ("encode", "restore") else ()
    return Page(about, f"{command} {usage}", [f"{command} {example}" for example in examples], names, classes, _TOOL)


PAGES = {
    "fit": _trainer_page(
        "fit",
        "Train a model from a configuration, or resume a run with --ckpt_path.",
        (
            f"fit --config {_DIGITS}",
            f"fit --config {_DIGITS} --run long --trainer.max_steps 5000",
            f"fit --config {_DIGITS} --ckpt_path last",
        ),
        _FIT,
    ),
    "doctor": _trainer_page(
        "doctor",
        "Check what fit would train with the same options: read the data, train and write nothing, print a line for "
        "each check with its value and how to fix it; exit status 2 if there is an error.",
        (f"doctor --config {_DIGITS}", f"doctor --config {_DIGITS} --data Folder --data.path images"),
        {**_FIT, "json": ""},
    ),
    "validate": _trainer_page(
        "validate",
        "Compute the losses of a checkpoint on the validation split.",
        (f"validate --config {_DIGITS} --ckpt_path runs/digits-vp",),
        _OF_A_CHECKPOINT,
    ),
    "test": _trainer_page(
        "test",
        "Compute the losses of a checkpoint on the test split.",
        (f"test --config {_DIGITS} --ckpt_path runs/digits-vp",),
        _OF_A_CHECKPOINT,
    ),
    "predict": _trainer_page(
        "predict",
        "Draw 64 images or 1,000 points from a checkpoint into the folder of its run; `sample` has more options and "
        "needs no configuration.",
        ("predict --config runs/digits-vp/config.yaml --run digits-vp --ckpt_path last",),
        _OF_A_CHECKPOINT,
    ),
    "sample": _tool_page(
        "sample",
        "Draw samples from a checkpoint and save them in the units of its data; a call that was interrupted continues "
        "when it is repeated.",
        "--ckpt_path PATH [--OPTION VALUE …]",
        (
            "--ckpt_path runs/digits-vp --num_samples 100 --output digits",
            "--ckpt_path runs/digits-conditional --sampler DPMpp --steps 20 --cond.label 3",
            "--ckpt_path runs/digits-vp --num_samples 50000 --npz --devices 8",
        ),
        "ckpt_path num_samples output seed sampler grid steps cond scale weights npz film data batch_size "
        "accelerator devices",
    ),
    "evaluate": _tool_page(
        "evaluate",
        "Compute metrics (FID, IS, KID, precision, likelihood, …) of a checkpoint, with a record of how they were "
        "measured.",
        "--ckpt_path PATH [--OPTION VALUE …]",
        (
            "--ckpt_path runs/digits-vp --num_samples 50000 --metrics fid is",
            "--ckpt_path runs/digits-vp --metrics nll elbo --output likelihood",
        ),
        "ckpt_path metrics num_samples repeats output seed sampler grid steps cond scale extractor reference split "
        "likelihood_split data weights batch_size accelerator devices",
    ),
    "verify": _tool_page(
        "verify",
        "Check whether the metrics of a run are in the ranges that its configuration expects; exit status 2 if one is "
        "not.",
        "RUN [--evaluation FILE …]",
        ("runs/digits-vp",),
    ),
    "compare": _tool_page(
        "compare",
        "Show the metrics of two or more evaluations side by side; those that were measured differently are refused.",
        "FILE FILE … [--metrics NAME …]",
        ("a/evaluation.json b/evaluation.json", "*/evaluation.json --metrics fid"),
    ),
    "configs": _tool_page(
        "configs",
        "List the configurations that come with the package, by name: fit --config digits/vp takes one.",
        "[--json]",
        ("--json",),
    ),
    "runs": _tool_page(
        "runs",
        "List the runs in a folder: state, step, planned steps, size and last metrics.",
        "[FOLDER] [--json]",
        ("elsewhere/runs", "--json"),
    ),
    "sweep": _tool_page(
        "sweep",
        "Compare samplers at equal numbers of function evaluations (NFE), from the same latents.",
        "--ckpt_path PATH --samplers NAME … --nfe N …",
        (
            "--ckpt_path runs/digits-vp --samplers DDIM Heun DPMpp --nfe 5 10 20 50",
            "--ckpt_path runs/digits-vp --samplers DPMpp UniPC --nfe 10 --grid KarrasGrid",
            "--ckpt_path runs/digits-meanflow --samplers DDIM --nfe 1 2 4 8 --baseline runs/digits-vp",
        ),
    ),
    "encode": _tool_page(
        "encode",
        "Compute the noise that images or points come from, and interpolate between them.",
        "--ckpt_path PATH --path PATH [--OPTION VALUE …]",
        ("--ckpt_path runs/digits-vp --path images --between 7 --sampler Heun",),
    ),
    "restore": _tool_page(
        "restore",
        "Fill in the missing parts of images or fields (inpaint, colorize, upscale) with samples of a model that was "
        "not trained for it.",
        "--ckpt_path PATH --path PATH [--OPTION VALUE …]",
        (
            "--ckpt_path runs/digits-vp --path image.png --task inpaint --mask mask.png",
            "--ckpt_path runs/digits-vp --path images --task upscale --factor 4 --method gradient",
            "--ckpt_path runs/fields-edm --path fields.npy --mask :,8:16 --method posterior",
        ),
    ),
    "latents": _tool_page(
        "latents",
        "Encode all images of a data set by an autoencoder, and save the moments of their latents, on which fit trains "
        "with --data Latents; a call that was interrupted continues when it is repeated.",
        "--data NAME --autoencoder PATH [--OPTION VALUE …]",
        (
            "--data FashionMNIST --autoencoder runs/fashion_mnist-autoencoder --mirrors",
            "--data Folder --data.path images --data.size 256 --autoencoder my_vae",
            "--data Folder --data.path images --data.size 256 --autoencoder my_vae --online",
        ),
        "data autoencoder output mirrors dtype online statistics_from batch_size accelerator",
    ),
    "import": _tool_page(
        "import",
        "Convert a model of another package into a checkpoint that sample, evaluate, sweep, export and fit take.",
        "--from NAME --path PATH --output FILE [--OPTION VALUE …]",
        (
            "--from diffusers --path ddpm-cifar10-32 --output cifar10.ckpt",
            "--from lucidrains --path model-10.pt --output own.ckpt --data Folder",
        ),
        "from path output data size variant objective betas steps heads trust_pickle",
    ),
    "average": _tool_page(
        "average",
        "Make the EMA weights of another width after training, from the snapshots of a run, and save them as a "
        "checkpoint.",
        "--ckpt_path PATH --std WIDTH [--OPTION VALUE …]",
        (
            "--ckpt_path runs/digits-vp --std 0.15",
            "--ckpt_path runs/digits-vp --std 0.1 --step 4096 --output early.ckpt",
        ),
    ),
    "export": _tool_page(
        "export",
        "Write the model of a checkpoint for another package: diffusers, safetensors, ONNX or torch.export.",
        "--ckpt_path PATH --to NAME --output FOLDER [--OPTION VALUE …]",
        ("--ckpt_path runs/digits-vp --to safetensors --output digits --license mit",),
    ),
    "replay": _tool_page(
        "replay",
        "Re-run the step at which training stopped on non-finite values, and show where they begin; exit status 1 if "
        "it is not reproduced.",
        "DUMP [--OPTION VALUE …]",
        ("runs/digits-vp --precision 32-true",),
    ),
    "completion": _tool_page(
        "completion",
        "Print a completion script of the program diffusion_pl for a shell.",
        "bash|zsh|tcsh",
        ("bash > ~/.local/share/bash-completion/completions/diffusion_pl",),
    ),
}
