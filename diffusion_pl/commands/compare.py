"""python -m diffusion_pl compare: two evaluations side by side, where they can be compared."""

from pathlib import Path


def compare(a: Path, b: Path, metrics: list[str] | None = None) -> None:
    """Show the results of two evaluations side by side; refuse those that were measured differently, with reasons.

    Args:
        a: evaluation.json of one model.
        b: evaluation.json of the other.
        metrics: Names of metrics; None: all that both have.
    """
    from ..evaluation import differences, read_results, side_by_side

    results_a, results_b = read_results(a), read_results(b)
    names = [name for name in results_a if name in results_b] if metrics is None else metrics
    for name in names:
        path_without = next((path for path, results in ((a, results_a), (b, results_b)) if name not in results), None)
        if path_without is not None:
            raise ValueError(f"{path_without} has no {name}")
    if not names:
        raise ValueError(f"{a} ({', '.join(results_a)}) and {b} ({', '.join(results_b)}) have no metric in common")
    refused = []
    print(f"{'':<10} {'A':>12} {'B':>12} {'B - A':>12}")
    for name in names:
        reasons = differences(results_a[name], results_b[name])
        if reasons:
            refused.append(f"{name} ({'; '.join(reasons)})")
            continue
        print(f"{name:<10} {side_by_side(results_a[name], results_b[name])}")
    for key in ("checkpoint", "images", "weights", "sampler", "nfe", "seed"):
        pair = [results[names[0]].model.get(key) for results in (results_a, results_b)]
        if pair[0] != pair[1]:
            print(f"  {key}: {pair[0]} | {pair[1]}")
    if refused:
        raise ValueError(f"not measured alike: {', '.join(refused)}")
