"""python -m diffusion_pl configs: the configurations that come with the package."""

from ..runtime.output import Report, next_command


def configs() -> Report:
    """List the shipped configurations, a line each: name, hardware and time of a run, paper (arXiv), and what it is.

    A name stands for its file wherever a configuration is expected, in any folder: fit --config digits/vp.  Overlays
    are given after another configuration: fit --config cifar10/edm --config overlays/gpu.
    """
    from ..runtime.shipped_configs import read_heading, shipped_configs

    rows = []
    for name, path in shipped_configs().items():
        head = read_heading(path)
        cost = head.cost.replace(", two cores", "")
        rows.append({"name": name, "hardware, time": cost, "arXiv": " ".join(head.papers[:1]), "what": head.what})
    return Report(done=f"{len(rows)} configurations", rows=rows, next=[next_command("fit", "--config", "digits/vp")])
