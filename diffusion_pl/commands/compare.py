"""python -m diffusion_pl compare: two evaluations side by side, where they can be compared."""

from pathlib import Path


def compare(a: Path, b: Path, metrics: list[str] | None = None) -> None:
    """Set the figures of two evaluations side by side; refuse those that were not measured alike, and say why.

    Args:
        a: evaluation.json of one model.
        b: That of the other.
        metrics: Which; None: all that both have.
    """
    from ..evaluation import compare_figures, differences, read_figures

    ours, theirs = read_figures(a), read_figures(b)
    names = [name for name in ours if name in theirs] if metrics is None else metrics
    for name in names:
        lacking = next((path for path, figures in ((a, ours), (b, theirs)) if name not in figures), None)
        if lacking is not None:
            raise ValueError(f"{lacking} holds no {name}")
    if not names:
        raise ValueError(f"{a} ({', '.join(ours)}) and {b} ({', '.join(theirs)}) have no metric in common")
    refused = []
    print(f"{'':<10} {'A':>12} {'B':>12} {'B - A':>12}")
    for name in names:
        one, other = ours[name], theirs[name]
        why = differences(one, other)
        if why:
            refused.append(f"{name} ({'; '.join(why)})")
            continue
        print(f"{name:<10} {compare_figures(one, other)}")
    for key in ("checkpoint", "weights", "sampler", "nfe", "seed"):
        pair = [f[names[0]]["model"].get(key) for f in (ours, theirs)]
        if pair[0] != pair[1]:
            print(f"  {key}: {pair[0]} | {pair[1]}")
    if refused:
        raise ValueError(f"not measured alike: {', '.join(refused)}")
