"""A scheduler of the package diffusers: the noise schedule it was trained with, and how its pipeline samples.

Timestep k there is index k + 1 of our table.  DDIMScheduler goes from timestep k to k − ⌊N/n⌋, whatever timestep it
visits next; where these are the same its samples are ours.  After the last step it is at ᾱ = 1 (`set_alpha_to_one`),
which is our denoised x̂_0, or at ᾱ_1, which is our `DDIM(end=1/N)`.  It clips x̂_0 and keeps ε̂.
"""

from typing import Any, NamedTuple

from .foreign import Spec, spec
from .options import Options, is_whole, listed

LONGEST = 100_000  # steps of a table
#: beta_schedule -> our table.
SCHEDULES = {
    "linear": "LinearBetas",
    "scaled_linear": "QuadraticBetas",
    "squaredcos_cap_v2": "CosineBetas",
    "sigmoid": "SigmoidBetas",
}
#: prediction_type -> parameterization and weighting: of ε and v the plain squared error, of x_0 by SNR as in the
#: package's training example.
PREDICTIONS = {
    "epsilon": ("Epsilon", spec("losses.SNR")),
    "v_prediction": ("V", spec("losses.SNR", plus=1.0)),
    "sample": ("Data", spec("losses.SNR")),
}
VARIANCES = {
    "fixed_small": 0.0,
    "fixed_small_log": 0.0,
    "fixed_large": 1.0,
    "fixed_large_log": 1.0,
    "learned_range": None,
}
SPACINGS = ("leading", "trailing", "linspace")
#: Of the same chain as DDPM, but with other samplers.
OTHERS = (
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
#: Pipelines, and their default number of steps.
PIPELINES = {"DDPMPipeline": 1000, "DDIMPipeline": 50}
#: Our own addition to scheduler_config.json: with which arguments the pipeline is to be called.
CALL = "_pipeline_call"


class Process(NamedTuple):
    """Parts of a model's configuration, the number of steps of its table, and what was assumed."""

    steps: int
    schedule: Spec
    parameterization: Spec
    weighting: Spec
    sampler: Spec
    guidance: Spec | None
    notes: list[str]


def read(option: Options, learns: bool, pipeline: str | None) -> Process:
    """The noise schedule of a scheduler.

    Args:
        option: of scheduler_config.json.
        learns: whether the network predicts a variance.
        pipeline: class of the pipeline; None: that of the scheduler.

    Raises:
        ValueError: an option that we have no counterpart of; it is named.
    """
    kind = option.choice("_class_name", "DDPMScheduler", "DDIMScheduler", *OTHERS)
    notes: list[str] = []
    if kind in OTHERS:  # whose defaults differ
        for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"):
            if name not in option:
                raise ValueError(f"{option.where}: {name} is missing, which a {kind} needs")
    steps, schedule = _schedule(option)
    name, weighting = PREDICTIONS[_prediction(option)]
    ddim = kind != "DDPMScheduler" or pipeline not in ("DDPMPipeline", None)
    call = _call(option, steps)
    clipped = _clipping(option, kind not in OTHERS, call["use_clipped_model_output"])
    num_steps = call["num_inference_steps"] or (
        50 if kind in OTHERS else PIPELINES.get(pipeline or "", 50 if ddim else 1000)
    )
    grid, n = _grid(option, steps, min(num_steps, steps), "linspace" if kind in OTHERS[1:] else "leading")
    end = 0.0 if option.flag("set_alpha_to_one", True) else 1 / steps
    if ddim:
        option.get("variance_type", None)  # DDIMPipeline passes it over
        sampler = spec("samplers.DDIM", grid=grid, eta=call["eta"], end=end)
        notes += _inconsistent(option, grid, steps, n)
    else:
        variance = _variance(option, learns)
        sampler = spec("samplers.Ancestral", grid=grid, variance=variance)
        notes += _last_noise(option, grid, variance)
    scheduler = kind if kind in OTHERS else pipeline
    unread = listed(option.left())
    if kind in OTHERS or pipeline not in (None, *PIPELINES):
        notes.append(f"the sampler of {scheduler} is not read: samples are drawn with DDIM in {n} steps")
    elif not call["num_inference_steps"]:
        by = pipeline or ("DDIMPipeline" if ddim else "DDPMPipeline")
        notes.append(f"samples are drawn in {n} steps, as {by} does by default: sample --steps N takes another number")
    if unread:
        notes.append(f"{option.where}: not read: {unread}")
    return Process(steps, schedule, spec(f"denoisers.{name}"), weighting, sampler, clipped, notes)


def _schedule(option: Options) -> tuple[int, Spec]:
    steps = option.whole("num_train_timesteps", 1000, 1, LONGEST)
    kind = option.choice("beta_schedule", *SCHEDULES)
    low = option.number("beta_start", 1e-4, 0, 1)
    high = option.number("beta_end", 0.02, 0, 1)
    given = option.get("trained_betas", None)
    if given is not None:
        betas = option.items("trained_betas", [], LONGEST)
        if len(betas) != steps:
            raise option.wrong("trained_betas", f"as many numbers as num_train_timesteps, {steps}")
        if not all(isinstance(beta, float) and 0 < beta < 1 for beta in betas):
            raise option.wrong("trained_betas", "numbers between 0 and 1")
        schedule = spec("schedules.BetaTable", betas=betas)
    elif kind == "squaredcos_cap_v2":
        schedule = spec("schedules.CosineBetas", steps=steps)
    else:
        if not 0 < low <= high < 1:
            raise ValueError(
                f"{option.where}: expected 0 < beta_start <= beta_end < 1, got beta_start {low} and beta_end {high}"
            )
        schedule = spec(f"schedules.{SCHEDULES[kind]}", steps=steps, beta_min=low, beta_max=high)
    if option.flag("rescale_betas_zero_snr", False):
        if steps < 2:
            raise option.wrong("rescale_betas_zero_snr", "false for a table of one step")
        schedule = spec("schedules.ZeroTerminalSNR", table=schedule)
    option.choice("use_flow_sigmas", False, None)  # another process than that of the betas
    option.choice("timestep_type", "discrete")  # likewise
    return steps, schedule


def _prediction(option: Options) -> str:
    prediction = option.choice("prediction_type", *PREDICTIONS)
    option.choice("tensor_format", "pt", "np", None)  # of releases before 0.3, as is the next
    if option.flag("predict_epsilon", True):
        return str(prediction)
    if "prediction_type" in option and prediction != "sample":
        raise option.wrong("predict_epsilon", f"true with prediction_type {prediction}")
    return "sample"


def _call(option: Options, steps: int) -> dict[str, Any]:
    """Arguments of the pipeline's call, as `to_diffusers` writes them; the package has them in no file."""
    arguments = {"num_inference_steps": None, "eta": 0.0, "use_clipped_model_output": False}
    call = option.get(CALL, {})
    if not isinstance(call, dict) or call.keys() - arguments.keys():
        raise option.wrong(CALL, f"a dictionary of {', '.join(arguments)}")
    arguments |= call
    if arguments["num_inference_steps"] is not None and not is_whole(arguments["num_inference_steps"], 1, steps):
        raise option.wrong(CALL, f"num_inference_steps from 1 to {steps}")
    if type(arguments["eta"]) not in (int, float) or not 0 <= arguments["eta"] <= 1:  # type: ignore[operator]
        raise option.wrong(CALL, "eta from 0 to 1")
    if not isinstance(arguments["use_clipped_model_output"], bool):
        raise option.wrong(CALL, "use_clipped_model_output true or false")
    return arguments


def _clipping(option: Options, by_default: bool, rederived: bool) -> Spec | None:
    clips = option.flag("clip_sample", by_default)
    reach = option.number("clip_sample_range", 1.0, 1e-6, 1e6)
    most = option.number("sample_max_value", 1.0, 1e-6, 1e6)
    quantile = option.number("dynamic_thresholding_ratio", 0.995, 1e-6, 1)
    if option.flag("thresholding", False):
        if most < 1:
            raise option.wrong("sample_max_value", "a number from 1 on")
        if most == 1:  # which leaves nothing dynamic
            return spec("denoisers.Thresholded", low=-1.0, high=1.0, keep_eps=not rederived)
        options = {"quantile": float(quantile), "max_r": float(most), "keep_eps": not rederived}
        return spec("denoisers.Thresholded", low=-1.0, high=1.0, **options)
    if clips:
        return spec("denoisers.Thresholded", low=-float(reach), high=float(reach), keep_eps=not rederived)
    return None


def _grid(option: Options, steps: int, n: int, default: str) -> tuple[Spec, int]:
    """The grid of n points, or of the most that steps_offset leaves room for; and their number."""
    others = [name for name in SPACINGS if name != default]
    spacing = option.choice("timestep_spacing", default, *others)
    offset = option.whole("steps_offset", 0, 0, steps - 1)
    if spacing == "trailing":
        return spec("samplers.TrailingGrid", length=steps, steps=n), n
    if spacing == "linspace":
        return spec("samplers.RespacedGrid", length=steps, steps=n), n
    while steps // n * (n - 1) + offset >= steps:
        n -= 1
    return spec("samplers.LeadingGrid", length=steps, steps=n, offset=offset), n


def _variance(option: Options, learns: bool) -> float | None:
    kind = option.choice("variance_type", *VARIANCES)
    variance = VARIANCES[kind]
    if learns != (variance is None):
        raise ValueError(
            f"{option.where}: variance_type {kind} does not match a network that predicts "
            f"{'a' if learns else 'no'} variance"
        )
    return variance


def _inconsistent(option: Options, grid: Spec, steps: int, n: int) -> list[str]:
    kind = grid["class_path"].rpartition(".")[2]
    if n == steps or kind == "LeadingGrid" or (kind == "TrailingGrid" and steps % n == 0):
        return []
    spacing = option.get("timestep_spacing", "linspace")
    return [
        f"timestep_spacing {spacing}: with {n} steps of {steps} diffusers' DDIM goes to other timesteps than it "
        "visits; here each step leads to the timestep that is visited next"
    ]


def _last_noise(option: Options, grid: Spec, variance: float | None) -> list[str]:
    """DDPMScheduler adds noise of variance β in its last step, unless that is at timestep 0."""
    trailing = grid["class_path"].endswith("TrailingGrid")
    if variance == 0 or not (trailing or grid["init_args"].get("offset")):
        return []
    which = "timestep_spacing trailing" if trailing else "steps_offset"
    return [
        f"{which}: where its last timestep is not 0, DDPMPipeline adds noise to the samples; here they are denoised"
    ]
