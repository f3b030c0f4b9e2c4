"""Short trainings of the shipped configurations: a narrow network, a small batch, some hundred steps on a CPU.

What a configuration says of schedule, parameterization, loss, times and optimizer stays as it is: that is what a trial
is about.  The validation loss, always at the same times and noise, is taken before the first step and after the last.
"""

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

#: Widths and depths in place of larger ones, by the name of the network's option.
NARROW = {"nf": 16, "num_res_blocks": 1, "head_channels": 16, "width": 144, "depth": 3, "dim": 16}


class Trial(NamedTuple):
    """How far the validation loss falls: below `factor` times that of the untrained model in `steps` steps."""

    factor: float
    steps: int = 40
    batch: int = 8


#: By folder and name.  The factors are measured, with a margin; a loss whose target is mostly noise falls little.
TRIALS: dict[str, Trial] = {
    "anime/ddpmpp": Trial(0.5),
    "celeba_male/vp": Trial(0.5),
    "church/ncsnpp": Trial(0.6),
    "cifar10/ddpm": Trial(0.5),
    "cifar10/ddpm_vlb": Trial(0.7),
    "cifar10/dit": Trial(0.7),
    "cifar10/edm": Trial(0.7),
    "cifar10/edm_conditional": Trial(0.7),
    "cifar10/improved_ddpm": Trial(0.6),
    "cifar10/improved_ddpm_vlb": Trial(0.7),
    "cifar10/ot_cfm": Trial(0.6),
    "cifar10/rectified_flow": Trial(0.6),
    "cifar10/subvp_ddpmpp": Trial(0.5),
    "cifar10/vdm": Trial(0.7),
    "cifar10/ve_ncsnpp": Trial(0.6),
    "cifar10/vp_ddpmpp": Trial(0.5),
    "datasaurus/attempt1": Trial(0.5, 300, 256),
    "datasaurus/attempt2": Trial(0.35, 300, 256),
    "datasaurus/attempt3": Trial(0.35, 300, 256),
    "datasaurus/attempt4": Trial(0.5, 300, 256),
    "datasaurus/ddpm": Trial(0.35, 300, 256),
    "datasaurus/edm": Trial(0.985, 800, 256),
    "datasaurus/rectified_flow": Trial(0.9, 300, 256),
    "datasaurus/vp": Trial(0.98, 800, 256),
    "digits/classifier": Trial(0.9, 120, 32),
    "digits/conditional": Trial(0.7, 120, 16),
    "digits/dit": Trial(0.6, 120, 16),
    "digits/document2": Trial(0.5, 120, 16),
    "digits/improved": Trial(0.5, 120, 16),
    "digits/vp": Trial(0.7, 120, 16),
    "fashion_mnist/ddpm": Trial(0.5),
    "fields/conditional": Trial(0.8, 120, 16),
    "fields/edm": Trial(0.8, 120, 16),
    "folder/ddpm": Trial(0.5),
    "folder/small": Trial(0.5, 120),
    "mnist/ddpm": Trial(0.5),
    "mnist_colored_2/document0": Trial(0.5),
    "moons/rectified_flow": Trial(0.9, 300, 256),
    "moons/vp": Trial(0.98, 800, 256),
    "picture/document4": Trial(0.5, 120, 16),
    "shoes/vp": Trial(0.5),
}


class ValLosses(Callback):
    """The validation losses of the latest run: of the untrained model, and of the averaged weights since."""

    losses: ClassVar[list[float]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.losses.clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (name,) = (name for name in trainer.callback_metrics if name.startswith("val_loss/") and "_t" not in name[9:])
        self.losses.append(trainer.callback_metrics[name].item())


def key(config: Path) -> str:
    return f"{config.parent.name}/{config.stem}"


def options(config: Path, trial: Trial, keep: bool = False, resumed: bool = False, whole: bool = False) -> list[str]:
    """Of the command line, to make a run of the configuration short, and its panels none unless they are kept.

    The network is made narrow unless it is to be whole, because it is another than the configuration's.
    A run that is resumed takes as many steps again.
    """
    steps = trial.steps * (2 if resumed else 1)
    model = yaml.safe_load(config.read_text())["model"]
    where = "model.init_args" if "class_path" in model else "model"
    model = model.get("init_args", model)
    result: dict[str, Any] = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.num_nodes": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.enable_progress_bar": "false",
        "trainer.num_sanity_val_steps": -1,
        "trainer.max_steps": steps,
        "trainer.val_check_interval": trial.steps,
        "trainer.accumulate_grad_batches": 1,
        "trainer.callbacks" + "+" * keep: "trials.ValLosses" if keep else "[{class_path: trials.ValLosses}]",
        "data.init_args.batch_size": trial.batch,
    }
    network = {} if whole else model["network"]["init_args"]
    for size, less in NARROW.items():
        if network.get(size, 0) > less:
            result[f"{where}.network.init_args.{size}"] = less
    if len(network.get("ch_mult", ())) > 2 and 7 not in network["attn_resolutions"]:  # MNIST's 7 is the third level's
        result[f"{where}.network.init_args.ch_mult"] = "[1, 2]"
        result[f"{where}.network.init_args.attn_resolutions"] = "[16]"
    if model["optimizer"]["init_args"]["lr"] < 1e-3:  # a narrow network takes larger steps
        result[f"{where}.optimizer.init_args.lr"] = 2e-3
    if "lr_scheduler" in model:
        result[f"{where}.lr_scheduler.init_args.warmup_steps"] = 10
    return [word for name, value in result.items() for word in (f"--{name}", str(value))]
