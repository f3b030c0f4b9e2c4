"""The published experiments: what each configuration builds, number by number, and `verify`."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import weigh
from PIL import Image
from shell import ROOT, cli, fit
from torch import nn

from diffusion_pl.callbacks import EMA
from diffusion_pl.checkpoints.io import sha256_of
from diffusion_pl.cli import DiffusionCLI
from diffusion_pl.conditions import label, to_plain
from diffusion_pl.data.listing import Listing
from diffusion_pl.runtime.run_folder import RunFolder

CONFIGS = ROOT / "configs"
CIFAR10 = CONFIGS / "cifar10"
DEEP = ROOT / "configs" / "overlays" / "deep.yaml"


class Row(NamedTuple):
    """One experiment."""

    parameters: int
    lr: float
    warmup: int | None
    batch: int
    steps: int
    average: str  # decay, or half-life in images
    dropout: float
    clip: float | None
    process: dict[str, Any]
    objective: tuple[str, str | None]  # times, weighting
    sampler: str
    nfe: int | None  # None: as many as the tolerance asks for
    conditional: bool = False
    augment: float = 0.0
    flip: bool = True
    betas: tuple[float, float] = (0.9, 0.999)


VP = {"class": "VP", "beta_min": 0.1, "beta_max": 20.0}
SUBVP = {**VP, "class": "SubVP"}
VE = {"class": "VE", "sigma_min": 0.02, "sigma_max": 100.0}  # of images in [-1, 1]
TABLE = {"class": "LinearBetas", "steps": 1000, "beta_1": 1e-4, "beta_N": 0.02}
COSINE = {"class": "CosineBetas", "steps": 4000}
EDM = {"class": "Karras", "sigma_min": 0.002, "sigma_max": 80.0}
FLOW_MAP = 55_733_891 - 9 * 128 + 33 * 512 + 513 * 512  # EDM's without augmentation, with the length of jumps
#: Noise, stem, output and gain; blocks down; in between; up, where 512 channels come in; attention.
EDM2 = (
    *(256 * 256 + 4 * 9 * 256 + 9 * 256 * 3 + 1,),
    *(11 * (2 * 9 * 256**2 + 256**2 + 1),),
    *(2 * (2 * 9 * 256**2 + 256**2 + 1),),
    *(12 * (9 * 512 * 256 + 9 * 256**2 + 256**2 + 512 * 256 + 1) + 2 * (2 * 9 * 256**2 + 256**2 + 1),),
    *((3 + 3 + 1 + 4 + 4) * 4 * 256**2,),
)
PUBLISHED = {
    "ddpm": Row(35_746_307, 2e-4, 5000, 128, 800_000, "0.9999", 0.1, 1, TABLE, ("Grid", "SNR"), "Ancestral", 1000),
    "ddpm_vlb": Row(
        35_746_307, 2e-4, 5000, 128, 800_000, "0.9999", 0.1, 1, TABLE, ("Grid", "ChainELBO"), "Ancestral", 1000
    ),
    "improved_ddpm": Row(
        *(52_546_438, 1e-4, None, 128, 500_000, "0.9999", 0.3, None, COSINE, ("Grid", "SNR"), "Ancestral", 4000),
        flip=False,
    ),
    "improved_ddpm_vlb": Row(
        *(52_546_438, 1e-4, None, 128, 500_000, "0.9999", 0.3, None, COSINE, ("LossSecondMoment", None)),
        *("Ancestral", 4000),
        flip=False,
    ),
    "vp_ddpmpp": Row(
        61_804_419, 2e-4, 5000, 128, 1_300_000, "0.9999", 0.1, 1, VP, ("Uniform", "SNR"), "EulerMaruyama", 1000
    ),
    "subvp_ddpmpp": Row(
        61_804_419, 2e-4, 5000, 128, 1_300_000, "0.9999", 0.1, 1, SUBVP, ("Uniform", "SNR"), "EulerMaruyama", 1000
    ),
    "ve_ncsnpp": Row(
        62_758_787, 2e-4, 5000, 128, 1_300_000, "0.999", 0.1, 1, VE, ("Uniform", "SNR"), "PredictorCorrector", 1999
    ),
    "edm": Row(
        *(55_733_891, 1e-3, 19_531, 512, 390_625, "500000examples", 0.13, None, EDM, ("LogNormal", "Plain")),
        *("Heun", 35),
        augment=0.12,
        flip=False,
    ),
    "edm_conditional": Row(
        *(55_739_523, 1e-3, 19_531, 512, 390_625, "500000examples", 0.13, None, EDM, ("LogNormal", "Plain")),
        *("Heun", 35, True, 0.12, False),
    ),
    "vdm": Row(
        # Stem, time, blocks down and in the middle, attention, blocks up, output.
        17_408 + 328_704 + 34 * 361_344 + 66_304 + 33 * 541_952 + 3_715,
        *(2e-4, 100, 128, 10_000_000, "0.9999", 0.1, None),
        {"class": "LearnedLogSNR", "logsnr_max": 13.3, "logsnr_min": -5.0},
        *(("Stratified", "Likelihood"), "Ancestral", 1000),
        flip=False,
        betas=(0.9, 0.99),
    ),
    "edm2": Row(
        *(sum(EDM2), 1e-2, 19_531, 512, 390_625, "std0.05 std0.1", 0.13, None, EDM, ("LogNormal", "Plain"), "Heun", 35),
        betas=(0.9, 0.99),
    ),
    "ect": Row(
        *(FLOW_MAP, 1e-4, None, 128, 200_000, "0.9999", 0.2, None, EDM, ("LogNormal", "Plain")),
        *("MultistepConsistency", 2),
        flip=False,
    ),
    "scm": Row(
        *(FLOW_MAP, 1e-4, None, 512, 400_000, "500000examples", 0.2, None, {"class": "Cosine"}, ("LogNormal", "Plain")),
        *("MultistepConsistency", 1),
        flip=False,
        betas=(0.9, 0.99),
    ),
    "meanflow": Row(
        *(FLOW_MAP + 9 * 128, 6e-4, 9_766, 1024, 781_250, "0.9999 0.99995 0.9996", 0.2, None, {"class": "Rectified"}),
        *(("LogitNormal", "Plain"), "DDIM", 1, False, 0.12, False),
    ),
    "imf": Row(
        *(FLOW_MAP + 9 * 128, 6e-4, 9_766, 1024, 781_250, "0.9999 0.99995 0.9996", 0.2, None, {"class": "Rectified"}),
        *(("LogitNormal", "Plain"), "DDIM", 1, False, 0.12, False),
    ),
    "rectified_flow": Row(
        *(61_804_419, 2e-4, 5000, 128, 1_300_000, "0.999999", 0.15, 1, {"class": "Rectified"}),
        *(("Uniform", "FlowMatching"), "AdaptiveODE", None),
    ),
    "ot_cfm": Row(
        *(35_746_307, 2e-4, 5000, 128, 400_000, "0.9999", 0.1, 1, {"class": "Rectified"}),
        *(("Uniform", "FlowMatching"), "AdaptiveODE", None),
    ),
    "dit": Row(
        4_992 + 246_528 + 4_224 + 12 * 2_659_968 + 300_300,  # patches, time, classes, blocks, output
        *(1e-4, None, 256, 400_000, "0.9999", 0.0, None, TABLE, ("Grid", "SNR"), "Ancestral", 250, True),
    ),
}
#: Those of ImageNet at 256x256, and the shapes of their latents.
IMAGENET256 = {
    "imagenet256/dit_xl2": Row(
        # DiT's count without its fixed positions, 256 x 1152.
        *(675_129_632 - 256 * 1152, 1e-4, None, 256, 7_000_000, "0.9999", 0.0, None, TABLE, ("Grid", "SNR")),
        *("Ancestral", 250, True),
        flip=False,
    ),
    "imagenet256/sit_xl2": Row(
        *(674_816_272, 1e-4, None, 256, 7_000_000, "0.9999", 0.0, None, {"class": "Rectified"}),
        *(("Uniform", "FlowMatching"), "Heun", 249, True),
        flip=False,
    ),
    "imagenet256/sit_repa": Row(
        *(674_816_272, 1e-4, None, 256, 4_000_000, "0.9999", 0.0, 1, {"class": "Rectified"}),
        *(("Uniform", "FlowMatching"), "Heun", 249, True),
        flip=False,
    ),
    "imagenet256/lightningdit_xl1": Row(
        # Patches, time, classes, blocks (norms, attention, SwiGLU, modulation), output.
        33 * 1152
        + (257 + 1153) * 1152
        + 1001 * 1152
        + 28 * (2 * 1152 + 18 * 1152**2 + 4 * 1152 + 7 * 1152 + 6 * 1024)
        + 1152
        + 2 * 1153 * 1152
        + 32 * 1153,
        *(2e-4, None, 1024, 80_000, "0.9999", 0.0, None, {"class": "Rectified"}),
        *(("LogitNormal", "FlowMatching"), "DDIM", 250, True),
        flip=False,
        betas=(0.9, 0.95),
    ),
    "imagenet256/jit_b16": Row(
        *(131_123_712, 2e-4, 6255, 1024, 750_600, "0.9999 0.9998 0.9996", 0.0, None, {"class": "Rectified"}),
        *(("LogitNormal", "FlowMatching"), "Heun", 99, True),
        betas=(0.9, 0.95),
    ),
}
PUBLISHED["jit"] = Row(
    *(32_519_088, 2e-4, 1000, 256, 400_000, "0.9999", 0.0, None, {"class": "Rectified"}),
    *(("LogitNormal", "FlowMatching"), "Heun", 99, True),
    betas=(0.9, 0.95),
)
LATENTS = {"imagenet256": (4, 32, 32), "imagenet256-vavae": (32, 16, 16)}
DEEPER = {"vp_ddpmpp": 106_632_579, "subvp_ddpmpp": 106_632_579, "ve_ncsnpp": 107_586_947}


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Everything that a configuration names, at its size; weights stay uninitialized, which saves minutes."""
    monkeypatch.chdir(tmp_path)
    for name in ("kaiming_uniform_", "uniform_", "normal_", "xavier_uniform_", "zeros_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)

    def made(*files: Path) -> DiffusionCLI:
        # The doctor stops at the data, which are not here.
        options = ["--trainer.accelerator", "cpu"]
        if files[0].parent == CIFAR10:
            options += ["--data.init_args.download", "false"]
        else:
            imagenet(tmp_path, monkeypatch)
        return DiffusionCLI("fit", [*(f"--config={file}" for file in files), *options], RunFolder(), diagnose=True)

    return made


def imagenet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What says what the data are: names of one image for each of 1,000 classes, and records of latents."""
    for name, shape in LATENTS.items():
        (folder / name).mkdir()
        record = {
            **{"shape": list(shape), "image_shape": [3, 256, 256], "levels": 256, "class_counts": None},
            **{"conditions": to_plain({"label": label(1000)}), "mean": [0.0] * shape[0], "std": [1.0] * shape[0]},
            **{"autoencoder": {"name": "vae", "sha256": ""}, "data": {}, "splits": {}, "sha256": {}},
            **{"views": 2, "moments": 2, "dtype": "float16"},
        }
        (folder / name / "latents.json").write_text(json.dumps(record))
    names = [Path(str(number), "image.png") for number in range(1000)]
    for image in names:
        (folder / "imagenet" / image).parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "imagenet" / image)
    # Not by their inodes, which some file systems give to several small files.
    listed = [Path("imagenet", image) for image in names]
    monkeypatch.setattr("diffusion_pl.data.folder.list_images", lambda _: Listing(listed, Counter(), 0))


def process(schedule: Any) -> dict[str, Any]:
    """The numbers of a schedule, from what it computes."""
    ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    name = type(schedule).__name__
    if name in ("VP", "SubVP"):
        return {"class": name, "beta_min": schedule.beta_min, "beta_max": schedule.beta_max}
    if name == "LinearBetas":
        at = schedule(torch.tensor([1 / schedule.steps, 1 - 1 / schedule.steps, 1], dtype=torch.float64)).alpha.square()
        betas = (1 - at[0]).item(), (1 - at[2] / at[1]).item()
        return {"class": name, "steps": schedule.steps, "beta_1": betas[0], "beta_N": betas[1]}
    if name == "CosineBetas":
        return {"class": name, "steps": schedule.steps}
    if name in ("VE", "Karras"):
        return {"class": name, "sigma_min": ends.sigma[0].item(), "sigma_max": ends.sigma[1].item()}
    if name in ("LinearLogSNR", "LearnedLogSNR"):
        return {"class": name, "logsnr_max": ends.logsnr[0].item(), "logsnr_min": ends.logsnr[1].item()}
    return {"class": name}


def rates(network: nn.Module) -> set[float]:
    return {module.p for module in network.modules() if isinstance(module, nn.Dropout)}


@pytest.mark.parametrize("name", [*PUBLISHED, *IMAGENET256])
def test_it_builds_the_published_experiment(name: str, build: Any) -> None:
    row = (PUBLISHED | IMAGENET256)[name]
    made = build((CONFIGS if name in IMAGENET256 else CIFAR10) / f"{name}.yaml")
    model, trainer, data = made.model, made.trainer, made.datamodule
    assert sum(p.numel() for p in model.network.parameters()) == row.parameters
    assert rates(model.network) == ({row.dropout} if row.dropout else set())
    optimizer = model.optimizer_factory([nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["lr"] == row.lr
    assert optimizer.defaults["betas"] == row.betas
    assert optimizer.defaults["weight_decay"] == (0.01 if name == "vdm" else 0)
    factory = model.lr_scheduler_factory
    assert (None if factory is None else factory(optimizer, trainer.max_steps).warmup_steps) == row.warmup
    assert (data.batch_size, trainer.max_steps, trainer.gradient_clip_val) == (row.batch, row.steps, row.clip)
    average = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
    assert [each.name for each in average.averages] == row.average.split()
    assert process(model.schedule) == pytest.approx(row.process)
    times, weighting = model.loss.times, model.loss.weighting
    assert type(times).__name__.removesuffix("Times") == row.objective[0]
    assert (None if weighting is None else type(weighting).__name__) == row.objective[1]
    assert type(model.sampler).__name__ == row.sampler
    points = len(model.sampler.grid(model.schedule))
    assert row.nfe in (None, (points - 1) * model.sampler.evaluations + 1)
    assert ("label" in data.conditions) == row.conditional
    change = data.augmentation
    assert (getattr(change, "p", 0.0), change is not None) == (row.augment, row.flip or row.augment > 0)
    check_expected(name, made.config_dump["expected"])
    PARTICULAR.get(name, lambda model: None)(model)


def check_expected(name: str, expected: dict[str, Any] | None) -> None:
    """There is a band around each value that the source gives."""
    assert expected
    for band in expected.values():
        assert (band["band"] is None) == (band["paper"] is None) == (name in ("dit", "edm2", "imf", "jit"))
        if band["band"] is not None:
            lower, upper = band["band"]
            assert lower < float(band["source"].split(",")[0].split()[0]) == band["paper"] < upper
        assert band["num_samples"] in (10_000, 50_000)


def check_learned_variance(weight: float, mean: bool) -> Callable[[Any], None]:
    def check(model: Any) -> None:
        variance = model.loss.variance
        steps = model.schedule.chain_steps(variance.steps, "it")
        assert (steps, variance.weight, variance.mean) == (4000, weight, mean)
        assert model.sampler.variance is None

    return check


def check_edm(model: Any) -> None:
    assert (model.loss.times.mean, model.loss.times.std) == (-1.2, 1.2)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    snr_plus_4 = model.schedule(t).snr + 4  # the paper's λ(σ) = (σ² + σ_d²)/(σσ_d)²
    parameterization = model.denoiser.parameterization
    torch.testing.assert_close(weigh(model.loss.weighting, model.schedule, t, parameterization), snr_plus_4)
    assert parameterization.sigma_data == 0.5
    sigma = model.schedule(model.sampler.grid(model.schedule)).sigma
    assert sigma[[0, 1, -1]].tolist() == pytest.approx([80, 57.586, 0.002], rel=1e-4)  # the paper's steps at ρ = 7


def check_ve(model: Any) -> None:
    corrector = model.sampler.corrector
    assert (type(corrector).__name__, corrector.snr, corrector.steps) == ("Langevin", 0.16, 1)
    assert [type(model.sampler.predictor).__name__, model.network.scale_by_sigma] == ["ReverseDiffusion", True]


def check_ddpmpp(model: Any) -> None:
    assert model.loss.times.t_min == 1e-5
    assert model.sampler.grid(model.schedule)[-1] == pytest.approx(1e-3)


def check_ot_cfm(model: Any) -> None:
    assert type(model.loss.coupling).__name__ == "MinibatchOT"
    assert (model.sampler.rtol, model.sampler.atol) == (1e-5, 1e-5)


def check_ect(model: Any) -> None:
    rule = model.loss.rule
    assert (type(rule).__name__, rule.q, rule.every * 128, rule.stages, rule.power) == (
        *("Consistency", 2.0, 3_200_000),
        *(8, 0.5),
    )
    assert (model.loss.times.mean, model.loss.times.std) == (-1.1, 2.0)
    sigma = model.schedule(model.sampler.grid(model.schedule)).sigma
    assert sigma.tolist() == pytest.approx([80, 0.821], rel=1e-4)


def check_scm(model: Any) -> None:
    rule = model.loss.rule
    assert (type(rule).__name__, rule.warmup, rule.offset, rule.normalize) == (
        *("ContinuousConsistency", 10_000),
        *(0.1, True),
    )
    assert model.loss.uncertainty is not None


def check_edm2(model: Any) -> None:
    check_edm(model)
    schedule = model.lr_scheduler_factory(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), 1)
    assert (type(schedule).__name__, schedule.decay_steps) == ("InverseSqrt", 70_000)
    assert type(model.loss.uncertainty).__name__ == "Uncertainty"


def check_vdm(model: Any) -> None:
    """The ends learn, and the network is given 1,000 times their share of γ at first."""
    assert [name for name, _ in model.schedule.named_parameters()] == ["start", "fall"]
    assert (type(model.loss).__name__, model.loss.levels) == ("BoundLoss", 256)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    c_noise = model.denoiser.noise_input(model.schedule, t, model.schedule(t))
    assert c_noise.tolist() == pytest.approx([0, 300, 1000], abs=0.01)


def check_mean_flow(rule: str) -> Callable[[Any], None]:
    def check(model: Any) -> None:
        loss = model.loss
        assert (type(loss.rule).__name__, loss.rule.power, loss.rule.offset) == (rule, 0.75, 1e-3)
        assert (loss.pairs.equal, loss.times.mean, loss.times.std) == (0.25, -2.0, 2.0)

    return check


def check_sit(model: Any) -> None:
    assert not model.denoiser.parameterization.scaled_input
    assert model.loss.dropout == {"label": 0.1}


def check_repa(model: Any) -> None:
    check_sit(model)
    alignment = model.loss.alignment
    assert (alignment.layer, alignment.weight, alignment.projector[0].out_features) == ("blocks.7", 0.5, 2048)
    assert sum(p.numel() for p in alignment.parameters()) == 8_131_328


def check_lightningdit(model: Any) -> None:
    check_sit(model)
    assert (model.loss.times.mean, model.loss.times.std, model.loss.cosine) == (0.0, 1.0, 1.0)
    t = model.sampler.grid(model.schedule)
    backwards = 1 - torch.arange(250, 0, -1, dtype=torch.float64) / 250  # their time, of noise at 0
    torch.testing.assert_close(1 - t, 0.3 * backwards / (1 - 0.7 * backwards), rtol=1e-4, atol=1e-6)


def check_jit(model: Any) -> None:
    check_sit(model)
    assert type(model.denoiser.parameterization).__name__ == "Data"
    assert (model.loss.times.mean, model.loss.times.std, model.loss.weighting.clip) == (0.8, 0.8, 0.05)
    network = model.network
    assert (network.in_context_start, network.blocks[0].norm_q.weight.shape[0]) == (4, 64)


#: What is particular to one of them.
PARTICULAR: dict[str, Callable[[Any], None]] = {
    "improved_ddpm": check_learned_variance(0.001, mean=False),
    "improved_ddpm_vlb": check_learned_variance(1.0, mean=True),
    "edm": check_edm,
    "edm2": check_edm2,
    "vdm": check_vdm,
    "ve_ncsnpp": check_ve,
    "vp_ddpmpp": check_ddpmpp,
    "subvp_ddpmpp": check_ddpmpp,
    "ot_cfm": check_ot_cfm,
    "ect": check_ect,
    "scm": check_scm,
    "meanflow": check_mean_flow("MeanFlow"),
    "imf": check_mean_flow("ImprovedMeanFlow"),
    "imagenet256/sit_xl2": check_sit,
    "imagenet256/sit_repa": check_repa,
    "imagenet256/lightningdit_xl1": check_lightningdit,
    "imagenet256/jit_b16": check_jit,
    "jit": check_jit,
}


@pytest.mark.parametrize("name", ["vp_ddpmpp", pytest.param("subvp_ddpmpp", marks=pytest.mark.slow), "ve_ncsnpp"])
def test_the_deep_overlay_changes_the_depth_only(name: str, build: Any) -> None:
    plain, deep = build(CIFAR10 / f"{name}.yaml"), build(CIFAR10 / f"{name}.yaml", DEEP)
    assert sum(p.numel() for p in deep.model.network.parameters()) == DEEPER[name]
    assert deep.trainer.max_steps == 950_000
    ours, theirs = (json.loads(json.dumps(made.config_dump, default=str)) for made in (plain, deep))
    for config in (ours, theirs):
        config["model"]["network"]["init_args"].pop("num_res_blocks")
        config["trainer"].pop("max_steps")
        config.pop("expected")
        config.pop("config", None)
    assert ours == theirs


def test_each_has_its_row() -> None:
    assert {path.stem for path in CIFAR10.glob("*.yaml")} == set(PUBLISHED) >= DEEPER.keys()
    assert {f"imagenet256/{path.stem}" for path in (CONFIGS / "imagenet256").glob("*.yaml")} == set(IMAGENET256)
    assert PARTICULAR.keys() <= {*PUBLISHED, *IMAGENET256}


FID = {"band": [1.0, 2.0], "num_samples": 80, "source": "a test", "by": "DigitsClassifier"}
NLL = {"band": [2.0, 3.0], "num_samples": 50, "source": "a test", "split": "val"}


def fid(value: float, **changes: Any) -> dict[str, Any]:
    """As `evaluate` writes it."""
    reference = {"data": "Digits", "split": "train", "n": 1618, "sha256": ""}
    protocol = {"num_samples": 80, "extractor": {"class": "DigitsClassifier", "sha256": ""}, "reference": reference}
    model = {"checkpoint": "last.ckpt", "sha256": "", "weights": "ema0.999", "nfe": 4}
    return {"value": value, "std": 0.1, "unit": "", "protocol": protocol | changes, "model": model}


def nll(value: float, split: str = "val", examples: int = 50) -> dict[str, Any]:
    data = {"data": "Datasaurus", "split": split}
    protocol = {"examples": examples, "data": data, "estimator": {"class": "FlowLikelihood"}}
    return {**fid(value), "std": None, "standard_error": 0.2, "protocol": protocol}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that expects two results."""
    return fit(tmp_path_factory.mktemp("verify"), run="run", trainer__max_steps=2, expected={"fid": FID, "nll": NLL})


def verified(run: Path, results: dict[str, Any], other: bool = False) -> Any:
    for made in results.values():
        made["model"]["sha256"] = "0" * 64 if other else sha256_of(run / "checkpoints" / "last.ckpt")
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "evaluation.json").write_text(json.dumps({"version": "0", "figures": results}))
    return cli(run.parent.parent, "verify", "runs/run")


def test_a_run_within_its_bands_is_verified(run: Path) -> None:
    done = verified(run, {"fid": fid(1.5), "nll": nll(2.25)})
    assert (done.code, done.err) == (0, "")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "fid 1.5 0.1 1 2 inside a test" in lines
    assert "nll 2.25 0.2 2 3 inside a test" in lines


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"fid": fid(2.5), "nll": nll(2.25)}, "come out as expected: fid outside"),
        ({"fid": fid(0.5), "nll": nll(3.25)}, "fid outside, nll outside"),
        (
            {"nll": nll(2.5)},
            "fid missing; to measure it: .*--metrics fid --num_samples 80 --extractor DigitsClassifier",
        ),
        ({"fid": fid(1.5, num_samples=79), "nll": nll(2.5)}, "fid not comparable: samples 79, not 80"),
        (
            {"fid": fid(1.5, extractor={"class": "InceptionV3"}), "nll": nll(2.5)},
            "measured by InceptionV3, not DigitsClassifier",
        ),
        (
            {"fid": fid(1.5, reference={"data": "Digits", "split": "test"}), "nll": nll(2.5)},
            "fid not comparable: split test, not train",
        ),
        (
            {"fid": fid(1.5), "nll": nll(2.5, "test", 7)},
            "nll not comparable: samples 7, not 50; split test, not val",
        ),
        ({"fid": fid(float("nan")), "nll": nll(2.5)}, "fid outside"),
    ],
)
def test_outside_missing_or_not_comparable_is_an_error(run: Path, results: Any, message: str) -> None:
    import re

    done = verified(run, results)
    assert done.code == 2
    assert re.search(message, done.error), done.error


def test_results_of_another_checkpoint_are_not_this_runs(run: Path) -> None:
    done = verified(run, {"fid": fid(1.5), "nll": nll(2.5)}, other=True)
    assert done.code == 2
    assert "fid not comparable: of a checkpoint that is not the run's" in done.error


def test_results_may_be_in_several_files_elsewhere(run: Path, tmp_path: Path) -> None:
    verified(run, results := {"fid": fid(1.5), "nll": nll(2.5)})
    files = []
    for name, made in results.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps({"figures": {name: made}}))
    (run / "evaluation" / "evaluation.json").unlink()
    done = cli(run.parent.parent, "verify", "--run", "runs/run", "--evaluation", *files)
    assert (done.code, done.err) == (0, "")
    error = cli(run.parent.parent, "verify", "runs/run").error
    assert (
        "no evaluation at runs/run/evaluation/evaluation.json: make one with python -m diffusion_pl evaluate" in error
    )
    assert "--metrics fid nll --num_samples 80 --extractor DigitsClassifier" in error


def test_a_run_without_expected_values_cannot_be_verified(tmp_path: Path) -> None:
    fit(tmp_path, run="plain", trainer__max_steps=1)
    assert "has no section expected" in cli(tmp_path, "verify", "runs/plain").error
    assert "no run card at runs/none" in cli(tmp_path, "verify", "runs/none").error


def test_a_band_may_be_missing_for_a_reason(tmp_path: Path) -> None:
    none = {"band": None, "num_samples": 80, "source": "no published result"}
    run = fit(tmp_path, run="run", trainer__max_steps=1, expected={"fid": none})
    error = cli(tmp_path, "verify", "runs/run").error
    assert "has no band to compare it with (fid: no published result)" in error
    fit(tmp_path, run="run", trainer__max_steps=2, expected={"fid": none, "nll": {**NLL, "paper": 2.5}})
    run = run.with_name("run-2")
    (run / "evaluation").mkdir()
    made = nll(2.25)
    made["model"]["sha256"] = sha256_of(run / "checkpoints" / "last.ckpt")
    (run / "evaluation" / "evaluation.json").write_text(json.dumps({"version": "0", "figures": {"nll": made}}))
    done = cli(tmp_path, "verify", "runs/run-2")
    assert done.code == 0, done.err
    assert "1 of 1 metrics as expected" in done.out
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert "nll 2.25 0.2 2.5 yes 2 3 inside a test" in lines
    assert any(line.startswith("fid") and "no band no published result" in line for line in lines)


def test_expectations_are_saved_and_change_no_training(run: Path, tmp_path: Path) -> None:
    import yaml
    from shell import assert_same_training

    expected = {"fid": {**FID, "split": None, "paper": None}, "nll": {**NLL, "by": None, "paper": None}}
    assert yaml.safe_load((run / "config.yaml").read_text())["expected"] == expected
    assert json.loads((run / "card.json").read_text())["config"]["expected"] == expected
    assert_same_training(run, fit(tmp_path, run="run", trainer__max_steps=2))
