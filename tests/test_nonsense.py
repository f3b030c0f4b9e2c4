"""Nonsense in configurations, options, files and checkpoints: one line, and nothing else is written."""

import copy
import math
import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from images_model import fit_digits
from PIL import Image
from shell import TINY, Outcome, cli, fit

SECONDS = 10.0  # of the processor for one case
MEMORY = 8 << 30  # bytes beyond what the process has

#: What may stand in the place of any value.
NONSENSE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    10**6,
    10**9,
    10**30,
    -(10**30),
    0.5,
    -0.0,
    1e-320,
    1e30,
    math.inf,
    -math.inf,
    math.nan,
    "",
    " ",
    "abc",
    "1e3",
    "null",
    "..",
    "é☃",
    "a\nb",
    "x" * 5000,
    [],
    [[]],
    [1, 2, 3],
    ["a", None, {}],
    {},
    {"a": 1},
    {"class_path": "Nothing"},
    {"class_path": "os.system", "init_args": {"command": "touch trap"}},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 10**9, "out_features": 10**9}},
    {"class_path": "VP", "init_args": {"beta_min": "a"}},
    {"class_path": None},
    {"init_args": {}},
    "VP",
    "DDIM",
    "MLP",
    "torch.optim.SparseAdam",
    "diffusion_pl.networks",
    "builtins.print",
]
#: Sections of which a change would start other processes, leave the folder, or last as long as was asked for.
LEFT_OUT = {"devices", "num_nodes", "default_root_dir", "max_steps", "max_time", "max_epochs"}
OPTIONS = [
    "num_samples",
    "seed",
    "sampler",
    "grid",
    "steps",
    "scale",
    "cond",
    "cond.label",
    "weights",
    "npz",
    "film",
    "batch_size",
    "accelerator",
    "latents",
    "classifier",
    "weak",
    "sampler.order",
    "grid.rho",
    "nothing",
    "",
]


class Hang(BaseException):
    """A case took too long."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, images, latents and an evaluation."""
    folder = tmp_path_factory.mktemp("nonsense")
    fit(folder, run="points", trainer__max_steps=2)
    fit_digits(folder, trainer__max_steps=2)
    checkpoint = ("--ckpt_path", "runs/points/checkpoints/last.ckpt")
    points = folder / "points.csv"
    points.write_text("x,y\n1,2\n3,4\n50,60\n")
    for call in (
        ("encode", *checkpoint, "--path", points, "--output", "latents"),
        ("evaluate", *checkpoint, "--metrics", "energy", "--num_samples", 20, "--output", "evaluation"),
    ):
        done = cli(folder, *call)
        assert done.code == 0, done.err
    (folder / "images").mkdir()
    for k in range(4):
        values = np.random.default_rng(k).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / f"{k}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def bounds() -> Iterator[None]:
    """So much memory, and no other processes."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    patch = pytest.MonkeyPatch()
    popen = subprocess.Popen.__init__

    def only_git(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        assert str(args[0]).endswith("git"), args
        popen(self, args, *rest, **options)

    patch.setattr(subprocess.Popen, "__init__", only_git)
    yield
    patch.undo()
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def limited() -> Iterator[None]:
    """Raise Hang after SECONDS of the processor's time, which does not depend on what else runs on the machine."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def run(folder: Path, *args: Any) -> Outcome:
    """One case; a refusal is one line, and nothing appears but below runs/new and out."""
    before = files(folder)
    with limited():
        done = cli(folder, *args)
    lines = [line for line in done.err.splitlines() if line.startswith("diffusion_pl: error: ")]
    assert "Traceback" not in done.err, done.err
    assert "unexpected error" not in done.err, done.err
    assert done.code in (0, 2), done
    # The doctor's errors are lines of its table.
    assert len(lines) == (done.code == 2) or (args[0] == "doctor" and " error " in done.out and not lines), done
    assert all(len(line) < 2000 for line in lines), lines
    new = files(folder) - before
    assert all(name.split("/")[0] in ("runs", "out") for name in new), new
    assert all(name.split("/")[1].startswith("new") for name in new if name.startswith("runs/")), new
    remove(folder / "out")
    for made in (folder / "runs").glob("new*"):
        remove(made)
    return done


def remove(path: Path) -> None:
    for inner in sorted(path.rglob("*"), reverse=True):
        inner.rmdir() if inner.is_dir() else inner.unlink()
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values of a tree of dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        if key not in LEFT_OUT:
            yield (*path, key)
            yield from places(value, (*path, key))


def mutated(tree: Any, chance: random.Random) -> Any:
    """The tree with one value changed, one key taken out, doubled under another name, or misspelt."""
    tree = copy.deepcopy(tree)
    there = list(places(tree))
    if not there:  # an empty part
        return copy.deepcopy(chance.choice(NONSENSE))
    *way, last = chance.choice(there)
    part = tree
    for key in way:
        part = part[key]
    kind = chance.random()
    if kind < 0.75 or isinstance(part, list):
        part[last] = copy.deepcopy(chance.choice(NONSENSE))
    elif kind < 0.85:
        del part[last]
    elif kind < 0.95:
        part[str(last)[:-1] + chance.choice("xyz")] = part.pop(last)
    else:
        part[chance.choice([1, None, "", "a.b", "class_path", "init_args"])] = chance.choice(NONSENSE)
    return tree


def damaged(content: bytes, chance: random.Random) -> bytes:
    """The bytes with some changed, cut off, taken out or put in."""
    at, length = chance.randrange(len(content)), chance.randrange(1, 64)
    some = bytes(chance.randrange(256) for _ in range(length))
    return chance.choice(
        [
            content[:at],
            content[:at] + some + content[at + length :],
            content[:at] + some + content[at:],
            content[:at] + content[at + length :],
            some,
            b"",
        ]
    )


def in_yaml(folder: Path, chance: random.Random) -> None:
    tree = mutated({**TINY, "ema": {"decays": [0.9]}, "saver": {"every_n_steps": 5}, "guard": {"spike": 5.0}}, chance)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    if chance.random() < 0.2:
        text = damaged(text.encode(), chance).decode("utf-8", "replace")
    (folder / "case.yaml").write_text(text, encoding="utf-8")
    command = chance.choice(["fit", "doctor", "doctor"])
    name = ("--run", "new") if command == "fit" else ()
    run(folder, command, "--config", "case.yaml", *name, "--trainer.max_steps", 1)


def in_options(folder: Path, chance: random.Random) -> None:
    commands: dict[str, list[Any]] = {
        "sample": ["--output", "out", "--num_samples", 2],
        "encode": ["--output", "out", "--path", "points.csv"],
        "sweep": ["--output", "out", "--samplers", "DDIM", "--nfe", 2, "--num_samples", 4],
        "evaluate": ["--output", "out", "--num_samples", 4, "--metrics", "energy"],
        "restore": ["--output", "out", "--path", "images"],
        "export": ["--output", "out", "--to", "safetensors"],
        "compare": ["evaluation/evaluation.json"],
        "verify": ["runs/points"],
        "replay": ["runs/points/checkpoints/last.ckpt"],
    }
    command = chance.choice(list(commands))
    run_name = "digits" if command == "restore" else "points"
    checkpoint = ["--ckpt_path", f"runs/{run_name}/checkpoints/last.ckpt"]
    args = [*([] if command in ("compare", "verify", "replay") else checkpoint), *commands[command]]
    for _ in range(chance.choice([1, 1, 2])):
        value = chance.choice(NONSENSE)
        shown = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0]
        args += [f"--{chance.choice(OPTIONS)}", shown.strip()]
    if chance.random() < 0.2:
        del args[chance.randrange(len(args))]
    run(folder, command, *args)


def in_files(folder: Path, chance: random.Random) -> None:
    checkpoint = Path("runs/points/checkpoints/last.ckpt")
    call = ("--ckpt_path", checkpoint, "--output", "out")
    digits = ("--ckpt_path", "runs/digits/checkpoints/last.ckpt", "--output", "out")
    evaluation = Path("evaluation/evaluation.json")
    path, args = chance.choice(
        [
            (checkpoint, ("sample", *call, "--num_samples", 2)),
            (Path("runs/points/card.json"), ("verify", "runs/points")),
            (Path("runs/points/card.json"), ("export", *call, "--to", "safetensors")),
            (evaluation, ("compare", evaluation, evaluation)),
            (evaluation, ("export", *call, "--to", "safetensors", "--evaluation", evaluation)),
            (Path("latents/latents.npz"), ("sample", *call, "--latents", "latents/latents.npz")),
            (Path("points.csv"), ("encode", *call, "--path", "points.csv")),
            (Path("images/0.png"), ("restore", *digits, "--path", "images")),
            (Path("runs/points/config.yaml"), ("doctor", "--config", "runs/points/config.yaml")),
        ]
    )
    whole = (folder / path).read_bytes()
    try:
        (folder / path).write_bytes(damaged(whole, chance))
        run(folder, *args)
    finally:
        (folder / path).write_bytes(whole)


def in_checkpoints(folder: Path, chance: random.Random) -> None:
    name = chance.choice(["points", "digits"])
    content = torch.load(folder / f"runs/{name}/checkpoints/last.ckpt", weights_only=True)
    part = chance.choice(["diffusion_pl", "diffusion_pl", "diffusion_pl", "state_dict", "callbacks", None])
    if part is None:
        content = mutated(content, chance)
    else:
        content[part] = mutated(content[part], chance)
    torch.save(content, folder / "case.ckpt")
    done = run(folder, "sample", "--ckpt_path", "case.ckpt", "--output", "out", "--num_samples", 2)
    assert done.code == 2 or done.out.startswith("2 samples of case.ckpt"), done


KINDS = (in_yaml, in_options, in_files, in_checkpoints)


def check(folder: Path, numbers: range) -> None:
    (folder / "case.yaml").touch()
    (folder / "case.ckpt").touch()
    problems = []
    for number in numbers:
        chance = random.Random(number)
        kind = KINDS[number % len(KINDS)]
        try:
            kind(folder, chance)
        except (Hang, Exception) as error:
            problems.append(f"{kind.__name__} {number}: {type(error).__name__}: {str(error)[:500]}")
            remove(folder / "out")
    assert not problems, f"{len(problems)} of {len(numbers)}\n" + "\n".join(problems)
    assert not (folder / "trap").exists()


def test_thirty_cases_of_nonsense_are_one_line(folder: Path) -> None:
    check(folder, range(30))


@pytest.mark.slow
def test_two_thousand_cases_of_nonsense_are_one_line(folder: Path) -> None:
    check(folder, range(30, 2160))
