"""Resume optimizers: the state comes from the checkpoint, the options from the configuration.

An option is what the optimizer's class takes as an argument (lr, betas, weight_decay, fused …).  State is all else:
moments and step counts of each parameter, and what some optimizers count for a group of parameters.  A learning-rate
scheduler has options only: its position is the number of optimizer steps.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .lr_schedulers import advance

OptimizerFactory = Callable[[Any], Optimizer]


def resume_optimizer(
    checkpoint: dict[str, Any],
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    factory: OptimizerFactory,
    parameters: Iterable[Tensor],
) -> Iterator[str]:
    """Rewrite what a checkpoint holds of optimizer and scheduler as it is to be loaded; yields what is lost, in words.

    Args:
        checkpoint: content of the file, changed in place.
        optimizer, scheduler: new ones, made from the configuration; the scheduler is moved to its position.
        factory, parameters: what the optimizer was made by and from.
    """
    if scheduler is not None:
        advance(scheduler, int(checkpoint.get("global_step", 0)))
    checkpoint["lr_schedulers"] = []  # else the old options would be loaded with the position
    saved = checkpoint.get("optimizer_states") or [None]
    present, name = optimizer.state_dict(), type(optimizer).__name__
    if saved[0] is None:
        checkpoint["optimizer_states"] = []
        yield "the optimizer's state (moments and step counts) starts fresh: the checkpoint holds none"
        return
    old: dict[str, Any] = saved[0]
    state: dict[int, Any] = {}
    lost = ""
    before = _optimizer_in(checkpoint)
    related = before is None or before in _relatives(type(optimizer))
    if not related:
        lost = f"the checkpoint holds the state of {before[1] if before else ''}, which {name} cannot use"
    elif [len(g["params"]) for g in old["param_groups"]] != [len(g["params"]) for g in present["param_groups"]]:
        lost, related = "the checkpoint's optimizer has other groups of parameters", False
    else:
        state, missing = _common(old["state"], _keys(factory, parameters))
        if missing:
            lost = f"{name} now keeps {', '.join(sorted(missing))}, which the checkpoint lacks"
    if lost and old["state"]:
        yield f"the optimizer's state (moments and step counts) starts fresh: {lost}"
    groups = present["param_groups"]
    if related:
        own = [name for name in optimizer.defaults if name not in inspect.signature(type(optimizer)).parameters]
        groups = [
            {**new, **{name: then[name] for name in own if name in then}, "params": then["params"]}
            for new, then in zip(groups, old["param_groups"], strict=True)
        ]
    checkpoint["optimizer_states"] = [{"state": state, "param_groups": groups}]


def _optimizer_in(checkpoint: dict[str, Any]) -> tuple[str, str] | None:
    """Package and name of the class whose state a checkpoint holds; None: it does not say."""
    model = checkpoint.get("diffusion_pl", {}).get("model", {})
    spec = model.get("init_args", model).get("optimizer") if isinstance(model, dict) else None
    path = spec.get("class_path") if isinstance(spec, dict) else None
    return (path.partition(".")[0], path.rpartition(".")[2]) if isinstance(path, str) else None


def _relatives(kind: type) -> set[tuple[str, str]]:
    """A class, those that it is derived from and those derived from it: Adam and AdamW have the same state."""
    derived, more = {kind}, [kind]
    while more:
        subclasses: list[type] = more.pop().__subclasses__()
        more += [c for c in subclasses if c not in derived]
        derived.update(more)
    related = derived | {c for c in kind.__mro__ if issubclass(c, Optimizer) and c is not Optimizer}
    return {(c.__module__.partition(".")[0], c.__name__) for c in related}


def _keys(factory: OptimizerFactory, parameters: Iterable[Tensor]) -> list[set[str]] | None:
    """What an optimizer keeps of each parameter, seen at a step of a small copy; None: it takes no such step."""
    copies = []
    for p in parameters:
        copies.append(torch.nn.Parameter(torch.zeros([2] * p.ndim, dtype=p.dtype, device=p.device), p.requires_grad))
        if p.requires_grad:
            copies[-1].grad = torch.ones_like(copies[-1])
    try:
        optimizer = factory(iter(copies))
        optimizer.step(lambda: 0.0)
    except Exception:  # of an optimizer with demands of its own; torch's loading then has the word
        return None
    return [set(optimizer.state[p]) for group in optimizer.param_groups for p in group["params"]]


def _common(state: dict[int, dict[str, Any]], keys: list[set[str]] | None) -> tuple[dict[int, Any], set[str]]:
    """The part of a state that is still kept, and what is kept now and missing in it (then nothing is taken)."""
    if keys is None:
        return state, set()
    missing = {name for k, values in state.items() if values for name in keys[k] - values.keys()}
    if missing:
        return {}, missing
    common = {k: {name: v for name, v in values.items() if name in keys[k]} for k, values in state.items()}
    return {k: values for k, values in common.items() if values}, set()
