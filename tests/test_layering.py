"""The floors of the house: who imports whom, read from the source."""

import ast
import importlib
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import FLOORS, ISLANDS, ROOT

from diffusion_pl.data import DataModule

MODULES = sorted(ROOT.rglob("*.py"))
CORE = 4.7  # floors below: the mathematics, and what needs nothing


def place(path: Path) -> str:
    """The module or package of diffusion_pl that a file belongs to; "" for its own __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "" if parts == ("__init__",) else owner(parts)


def owner(parts: tuple[str, ...]) -> str:
    """The module, or the innermost package around it, that has a floor of its own."""
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in FLOORS), parts[0])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[set[tuple[str, ...]], set[str]]:
    """What a file imports anywhere in it: modules of the package as paths, and names of other packages."""
    inner, outer = set(), set()
    package = path.relative_to(ROOT).parent.parts

    def name(dotted: list[str]) -> None:
        if dotted[0] == "diffusion_pl":
            inner.add(tuple(dotted[1:]))
        else:
            outer.add(dotted[0])

    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = ["diffusion_pl", *package[: len(package) + 1 - node.level], *base]
            for alias in node.names:
                target = [*base, alias.name]
                is_module = base[0] == "diffusion_pl" and _exists(target[1:])
                name(target if is_module else base)
    return {result for result in inner if result}, outer


def _exists(parts: list[str]) -> bool:
    return ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").is_file()


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_module = pytest.mark.parametrize("path", [p for p in MODULES if place(p)], ids=label)


def test_the_reader_sees_every_kind_of_import() -> None:
    inner, outer = imports(ROOT / "samplers" / "ancestral.py")
    assert inner == {("tensors",), ("schedules",), ("samplers", "base"), ("samplers", "grids")}
    assert outer == {"torch"}
    assert "scipy" in imports(ROOT / "losses" / "couplings.py")[1]  # inside a function


@every_module
def test_every_module_has_its_floor(path: Path) -> None:
    assert place(path) in FLOORS or place(path) in ISLANDS, f"give {label(path)} a floor in conftest.FLOORS"


@every_module
def test_modules_import_from_lower_floors_only(path: Path) -> None:
    mine = place(path)
    for target in {owner(result) for result in imports(path)[0]} - {mine}:
        if mine in ISLANDS:
            assert target in ISLANDS[mine], f"the island {mine} imports {target}"
        elif target in ISLANDS:
            assert FLOORS[mine] >= CORE, f"{mine} of the core imports the island {target}"
        else:
            assert FLOORS[target] < FLOORS[mine], f"{mine} imports {target}, which is no lower floor"


@pytest.mark.parametrize("path", [p for p in MODULES if FLOORS.get(place(p), CORE) < CORE], ids=label)
def test_the_core_needs_torch_alone(path: Path) -> None:
    """And scipy for one assignment problem; no Lightning, no torchvision, no YAML."""
    allowed = {"torch", *({"scipy"} if path.stem == "couplings" else set()), *sys.stdlib_module_names}
    assert imports(path)[1] <= allowed


@pytest.mark.parametrize("path", [p for p in MODULES if place(p) == "networks"], ids=label)
def test_networks_need_torch_alone(path: Path) -> None:
    assert imports(path)[1] <= {"torch", *sys.stdlib_module_names}


@cache
def data_modules() -> set[str]:
    """Names of the kinds of data, concrete or not, beneath the one that all share."""
    for path in (ROOT / "data").glob("*.py"):
        importlib.import_module(f"diffusion_pl.data.{path.stem}")
    names, todo = set[str](), list(DataModule.__subclasses__())
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        names |= {kind.__name__} if kind.__module__.startswith("diffusion_pl.") else set()
    return names


@pytest.mark.parametrize("path", [p for p in MODULES if place(p) != "data"], ids=label)
def test_kinds_of_data_are_known_in_data_only(path: Path) -> None:
    """Others ask what the data are (`is_image`, `is_point`, `units`): a new kind of data needs no edit elsewhere."""
    kinds = data_modules()
    assert {"Images", "Points", "CIFAR10", "Digits"} <= kinds
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and "data" in (node.module or "").split("."):
            assert not kinds & {alias.name for alias in node.names}, f"line {node.lineno}"
        elif isinstance(node, ast.Attribute):  # data.Images
            assert not (isinstance(node.value, ast.Name) and node.value.id == "data" and node.attr in kinds)


#: Private names of others that a module may use, and why.
ALLOWED = {
    "_exit": "os._exit, which Python documents",
    "_replace": "of named tuples, which Python documents",
    "_generate_state_key": "of Callback, which Lightning documents for its subclasses",
}


#: Functions of Python whose second argument is the name of an attribute.
BY_NAME = ("getattr", "setattr", "hasattr", "delattr")


def private_names(tree: ast.Module) -> set[str]:
    """The private names that a module takes from elsewhere: attributes that it does not define, and imports."""
    nodes = list(ast.walk(tree))
    classes = {node.name for node in nodes if isinstance(node, ast.ClassDef)}
    owners = {"self", "cls", *classes}
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names, mine = set[str](), set[str]()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in owners
            (mine if own else names).add(node.attr)
            if own and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            names |= {
                arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            }
        elif isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return {name for name in names | (mine - defined) if name.startswith("_") and not name.startswith("__")}


def test_the_reader_sees_every_kind_of_private_name() -> None:
    source = """
import a._b
from _c import d
from e import _f
from . import _ours

class Own(Base):
    def _method(self):
        self._kept = trainer._g.h + getattr(x, "_i") + super()._j() + self._k + self._kept + Own._method
"""
    assert private_names(ast.parse(source)) == {"_b", "_c", "_f", "_g", "_i", "_j", "_k"}


@pytest.mark.parametrize("path", [p for p in MODULES if "upstream" not in p.parts], ids=label)
def test_private_names_of_others_are_in_upstream_alone(path: Path) -> None:
    used = private_names(tree(path)) - ALLOWED.keys()
    assert not used, f"{label(path)}: move what uses {', '.join(sorted(used))} to runtime/upstream"


def test_the_run_environment_variable_is_used_in_one_place() -> None:
    uses = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "DIFFUSION_PL_RUN" not in text or path.name == "run_folder.py"
        if path.name == "run_folder.py":
            uses = [line.strip() for line in text.splitlines() if "_VARIABLE" in line and not line.startswith("_")]
    written = [line for line in uses if line.startswith("os.environ[")]
    removed = [line for line in uses if ".pop(" in line]
    assert (len(written), len(removed), len(uses)) == (1, 1, 3)


def assigned(tree: ast.AST) -> list[str]:
    """The attributes of a model or data module that a file assigns, as it spells them."""
    result: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.Delete)):
            result += node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For)):
            result.append(node.target)
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            result.append(node.optional_vars)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            result.append(ast.Attribute(node.args[0], "…"))
    flat = [
        part for target in result for part in (target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target])
    ]
    owners = {"model", "module", "pl_module", "lightning_module", "classifier", "data", "datamodule", "dataset"}
    return [
        ast.unparse(part)
        for part in flat
        if isinstance(part, ast.Attribute) and owners & set(ast.unparse(part.value).split("."))
    ]


def test_the_reader_sees_every_kind_of_assignment() -> None:
    text = "model.a = 1; x, self.data.b = 2, 3; pl_module.c += 1; setattr(trainer.datamodule, 'd', 4); self.model = 5"
    assert assigned(ast.parse(text)) == ["model.a", "self.data.b", "pl_module.c", "trainer.datamodule.…"]


@pytest.mark.parametrize("path", [p for p in MODULES if place(p) in ("callbacks", "commands")], ids=label)
def test_models_and_data_are_not_set_from_outside(path: Path) -> None:
    result = assigned(tree(path))
    assert not result, f"{label(path)} sets {', '.join(result)}: build a Pipeline, or give the model a method for it"


def test_no_module_imports_itself_around_a_corner() -> None:
    def node(parts: tuple[str, ...]) -> str:
        return ".".join(parts[:-1] if parts and parts[-1] == "__init__" else parts)

    graph = {
        node(path.relative_to(ROOT).with_suffix("").parts): {node(result) for result in imports(path)[0]}
        for path in MODULES
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(graph) <= set(order)
