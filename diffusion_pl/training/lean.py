"""Less overhead for each training step: hooks that a class does not override are not called."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.profilers import PassThroughProfiler


class LeanHooks:
    """Disables the hooks of the training step that a class does not override.

    Lightning calls these six in every step, on the module and on every callback, empty or not, at some microseconds
    each; for a small network that adds up to a third of the step.  It skips a hook that is not callable.
    """

    on_train_batch_start: Any = None
    on_before_zero_grad: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None
    on_train_batch_end: Any = None


class LeanCallback(LeanHooks, Callback):
    """A callback that costs nothing in the training step unless it defines a hook there."""


class LeanProfiler(PassThroughProfiler):
    """Profiles nothing, at less cost: Lightning asks forty times a step and would make a new context each time."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return _NOTHING


_NOTHING = nullcontext()
