"""Losses and metrics of a run over its steps, small enough for every checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor

MOST = 1000  # values that are kept of a series; twice as many for a while


class History:
    """Series of (step, value), by name.

    Of a series with 2,000 values every second one is dropped: what is old is kept at longer intervals.  Values stay on
    their device until they are asked for, so that nothing waits for it.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[Tensor | float]] = {}

    def add(self, step: int, values: Mapping[str, Tensor | float]) -> None:
        """Append one value to each series.  A step that a series has already is replaced.

        Args:
            step: optimizer steps taken so far.
            values: numbers or tensors of shape (), by the name of the series.
        """
        for name, value in values.items():
            steps, series = self._steps.setdefault(name, []), self._values.setdefault(name, [])
            value = value.detach() if isinstance(value, Tensor) else value
            if steps and steps[-1] == step:
                series[-1] = value
                continue
            steps.append(step)
            series.append(value)
            if len(steps) >= 2 * MOST:
                del steps[:-1:2], series[:-1:2]

    def series(self) -> dict[str, Tensor]:
        """(N, 2), float64, on the CPU: step and value, by name."""
        for name, values in self._values.items():
            self._values[name] = list(map(float, values))
        return {
            name: torch.tensor([*zip(steps, self._values[name], strict=True)], dtype=torch.float64)
            for name, steps in self._steps.items()
        }

    def load(self, series: Mapping[str, Tensor]) -> None:
        """Replace all series by those of `series`."""
        self._steps = {name: [int(step) for step in rows[:, 0].tolist()] for name, rows in series.items()}
        self._values = {name: rows[:, 1].tolist() for name, rows in series.items()}
