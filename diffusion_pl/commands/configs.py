"""python -m diffusion_pl configs: the configurations that come with the package."""


def configs(json: bool = False) -> None:
    """List the shipped configurations, a line each: name, hardware and time of a run, paper (arXiv), and what it is.

    A name stands for its file wherever a configuration is expected, in any folder: fit --config digits/vp.  Overlays
    are given after another configuration: fit --config cifar10/edm --config overlays/gpu.

    Args:
        json: Print the same as JSON, with whole sentences and the path of each file.
    """
    from dataclasses import asdict
    from json import dumps

    from ..runtime.shipped_configs import read_heading, shipped_configs
    from ..runtime.text_table import text_table

    headings = {name: (path, read_heading(path)) for name, path in shipped_configs().items()}
    if json:
        content = [{"name": name, "path": str(path), **asdict(head)} for name, (path, head) in headings.items()]
        print(dumps(content, indent=2, ensure_ascii=False))
        return
    rows = [
        (name, head.cost.replace(", two cores", ""), " ".join(head.papers[:1]), head.what)
        for name, (_, head) in headings.items()
    ]
    print(text_table(("name", "hardware, time", "arXiv", "what"), rows))
    print("\ntrain one with   python -m diffusion_pl fit --config NAME")
