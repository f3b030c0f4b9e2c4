"""python -m diffusion_pl compare: two evaluations side by side, where they can be compared."""

from pathlib import Path


def compare(a: Path, b: Path, metrics: list[str] | None = None) -> None:
    """Show the results of two evaluations side by side; refuse those that were not measured alike, and say why.

    Args:
        a: evaluation.json of one model.
        b: evaluation.json of the other.
        metrics: Which ones; None: all that both have.
    """
    from ..evaluation import differences, read_results, side_by_side

    ours, theirs = read_results(a), read_results(b)
    names = [name for name in ours if name in theirs] if metrics is None else metrics
    for name in names:
        without = next((path for path, results in ((a, ours), (b, theirs)) if name not in results), None)
        if without is not None:
            raise ValueError(f"{without} has no {name}")
    if not names:
        raise ValueError(f"{a} ({', '.join(ours)}) and {b} ({', '.join(theirs)}) have no metric in common")
    refused = []
    print(f"{'':<10} {'A':>12} {'B':>12} {'B - A':>12}")
    for name in names:
        why = differences(ours[name], theirs[name])
        if why:
            refused.append(f"{name} ({'; '.join(why)})")
            continue
        print(f"{name:<10} {side_by_side(ours[name], theirs[name])}")
    for key in ("checkpoint", "weights", "sampler", "nfe", "seed"):
        pair = [results[names[0]].model.get(key) for results in (ours, theirs)]
        if pair[0] != pair[1]:
            print(f"  {key}: {pair[0]} | {pair[1]}")
    if refused:
        raise ValueError(f"not measured alike: {', '.join(refused)}")
