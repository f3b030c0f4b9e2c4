"""python -m diffusion_pl replay: repeat the step at which a run stopped."""

from pathlib import Path
from typing import Any

from ..runtime.output import Report, next_command

SHOWN = 10  # parameters and examples


def replay(
    dump: Path, precision: str | None = None, accelerator: str | None = None, detect_anomaly: bool = False
) -> Report:
    """Repeat the step of a dump, and show where its values stop being finite.

    A run that `guard` stopped leaves a dump in its folder, runs/RUN/dumps; nothing else is needed.  On the same device
    and in the same precision the step is the same to the last bit; the exit status is 1 if it is not.

    Args:
        dump: File of the dump, or folder of the run (its newest dump).
        precision: Number format, such as 32-true or bf16-mixed, to see whether it is the cause; None: the run's.
        accelerator: Kind of device: cpu, cuda or mps; None: the run's.
        detect_anomaly: Name of the operation whose gradient is NaN, searched by torch (slow).
    """
    import math

    from ..callbacks.replaying import read_dump
    from ..callbacks.replaying import replay as replay_share
    from ..runtime.devices import device_of
    from ..runtime.errors import quiet

    quiet()
    content = read_dump(dump)
    step = content["dump"]
    accelerator = accelerator or step["accelerator"]
    device_of(accelerator)
    precision = precision or step["precision"]
    several = len(step["ranks"]) > 1 or any(len(share["batches"]) > 1 for share in step["ranks"])
    processes = f", {step['world_size']} processes" if step["world_size"] > 1 else ""
    shares = []
    facts: dict[str, Any] = {"step": f"{step['step']}, {precision} on {accelerator}{processes}"}
    same = True
    for share in step["ranks"]:
        shares.append(replay_share(content, dump, share["rank"], precision, accelerator, detect_anomaly))
        for k, (now, then) in enumerate(zip(shares[-1].losses, share["losses"], strict=True)):
            same &= now == then or (math.isnan(now) and math.isnan(then))
            where = f" (process {share['rank']}, batch {k})" if several else ""
            facts[f"loss{where}"] = f"{now!r}, in the run {then!r}"
    first = next(
        (f"{s.first} (process {r})" if len(shares) > 1 else s.first for r, s in enumerate(shares) if s.first), None
    )
    facts["activations"] = f"the first that is not finite: {first}" if first else "all finite"
    anomalies = [s.anomaly for s in shares if s.anomaly]
    if anomalies:
        facts["backward"] = "; ".join(anomalies)
    else:
        names = list(dict.fromkeys(name for s in shares for name in s.not_finite))
        same &= set(names) == set(step["not_finite"])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        listed = f": {', '.join(names[:SHOWN])}{more}" if names else ""
        facts["gradients"] = f"{len(names)} parameters' not finite{listed}"
    examples = [e for s in shares for e in s.examples]
    examples.sort(key=lambda e: (math.isfinite(e.loss), -abs(e.loss) if math.isfinite(e.loss) else 0.0))
    facts["examples"] = f"the worst of {len(examples)}"
    rows = [
        {"row": e.row, "t": e.t, "loss": e.loss, **({"process": e.rank, "batch": e.batch} if several else {})}
        for e in examples[:SHOWN]
    ]
    reason = "not reproduced: another device, precision, version or number of threads rounds differently"
    wider = [] if precision == "64-true" else [next_command("replay", dump, "--precision", "64-true")]
    return Report(
        done=f"{dump}: {'reproduced' if same else reason}",
        facts=facts,
        rows=rows,
        next=wider,
        status=0 if same else 1,
    )
