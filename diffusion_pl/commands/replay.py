"""python -m diffusion_pl replay: repeat the step at which a run stopped."""

from pathlib import Path

SHOWN = 10  # parameters and examples


def replay(
    dump: Path, precision: str | None = None, accelerator: str | None = None, detect_anomaly: bool = False
) -> None:
    """Repeat the step of a dump, and print where its values stop being finite.

    A run that `guard` stopped leaves a dump in its folder, runs/RUN/dumps; nothing else is needed.  On the same device
    and in the same precision the step is the same to the last bit; the exit status is 1 if it is not.

    Args:
        dump: File of the dump, or folder of the run.
        precision: Precision in place of the run's, such as 32-true or bf16-mixed, to see whether it is the cause.
        accelerator: Accelerator in place of the run's, such as cpu.
        detect_anomaly: Let torch name the operation whose gradient is NaN.
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
    print(f"{dump}: step {step['step']}, {precision} on {accelerator}{processes}")

    shares = []
    same = True
    for share in step["ranks"]:
        shares.append(replay_share(content, dump, share["rank"], precision, accelerator, detect_anomaly))
        for k, (now, then) in enumerate(zip(shares[-1].losses, share["losses"], strict=True)):
            same &= now == then or (math.isnan(now) and math.isnan(then))
            where = f"   (process {share['rank']}, batch {k})" if several else ""
            print(f"loss         {now!r}, in the run {then!r}{where}")
    first = next(
        (f"{s.first} (process {r})" if len(shares) > 1 else s.first for r, s in enumerate(shares) if s.first), None
    )
    print(f"activations  {f'the first that is not finite: {first}' if first else 'all finite'}")
    anomalies = [s.anomaly for s in shares if s.anomaly]
    for anomaly in anomalies:
        print(f"backward     {anomaly}")
    if not anomalies:
        names = list(dict.fromkeys(name for s in shares for name in s.not_finite))
        same &= set(names) == set(step["not_finite"])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        print(
            f"gradients    {len(names)} parameters' not finite{': ' if names else ''}{', '.join(names[:SHOWN])}{more}"
        )
    examples = [e for s in shares for e in s.examples]
    examples.sort(key=lambda e: (math.isfinite(e.loss), -abs(e.loss) if math.isfinite(e.loss) else 0.0))
    print(f"examples     the worst of {len(examples)}:")
    for e in examples[:SHOWN]:
        where = f"   (process {e.rank}, batch {e.batch})" if several else ""
        print(f"  {e.row:>6}   t {e.t:.6f}   loss {e.loss:.6g}{where}")
    if not same:
        print("not reproduced: another device, precision, version or number of threads rounds differently")
        raise SystemExit(1)
    print("reproduced")
