"""Toy distributions in the plane, sampled without limit.

Each is drawn once, from its own generator, so the data set is a function of its arguments. ``noise`` is the standard
deviation of the Gaussian that blurs the shape, in the units the docstring gives, before normalisation.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..conditions import label
from .points import Points


class Toy(Points):
    """Base of the drawn data sets: points (x, y), labelled with their part of the shape on demand.

    Args:
        num_points: How many points to draw, at least 2.
        noise: Standard deviation of the blur; not negative.
        conditional: Label each point with its part of the shape.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.

    Attributes:
        parts: How many parts the shape has.
    """

    parts: int = 1

    def __init__(self, num_points: int, noise: float, conditional: bool = False, **kwargs: Any) -> None:
        name = type(self).__name__
        if num_points < 2:
            raise ValueError(f"{name}: num_points must be at least 2, got {num_points}")
        if not 0 <= noise < math.inf:
            raise ValueError(f"{name}: noise must be a finite number and not negative, got {noise}")
        conditions = {"label": label(self.parts)} if conditional else None
        super().__init__(name, ("x", "y"), conditions=conditions, **kwargs)
        self.num_points = num_points
        self.noise = noise

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def labelled(self, x: Tensor, label: Tensor) -> dict[str, Tensor]:
        """The examples, with the labels only if the data set is conditional."""
        return {"x": x, "label": label} if self.conditions else {"x": x}


class Moons(Toy):
    """Two interleaving half circles of radius 1 (scikit-learn's).

    Args:
        noise: Blur, in radii.
        conditional: Label each point with its moon.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    parts = 2

    def __init__(self, num_points: int = 10_000, noise: float = 0.05, conditional: bool = False, **kwargs: Any) -> None:
        super().__init__(num_points, noise, conditional, **kwargs)

    def examples(self) -> dict[str, Tensor]:
        from sklearn.datasets import make_moons

        x, label = make_moons(self.num_points, noise=self.noise, random_state=self.seed)
        return self.labelled(torch.from_numpy(x), torch.from_numpy(label).long())


class Circles(Toy):
    """Two concentric circles, the outer of radius 1 (scikit-learn's).

    Args:
        noise: Blur, in outer radii.
        factor: Radius of the inner circle, in (0, 1).
        conditional: Label each point with its circle.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    parts = 2

    def __init__(
        self,
        num_points: int = 10_000,
        noise: float = 0.05,
        factor: float = 0.5,
        conditional: bool = False,
        **kwargs: Any,
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"Circles: factor must be in (0, 1), got {factor}")
        super().__init__(num_points, noise, conditional, **kwargs)
        self.factor = factor

    def examples(self) -> dict[str, Tensor]:
        from sklearn.datasets import make_circles

        x, label = make_circles(self.num_points, noise=self.noise, factor=self.factor, random_state=self.seed)
        return self.labelled(torch.from_numpy(x), torch.from_numpy(label).long())


class SwissRoll(Toy):
    """A spiral: the rolled-up axes of scikit-learn's Swiss roll, radius about 5 to 14.

    Args:
        noise: Blur, in the units of the radius.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    def __init__(self, num_points: int = 10_000, noise: float = 0.5, **kwargs: Any) -> None:
        super().__init__(num_points, noise, conditional=False, **kwargs)

    def examples(self) -> dict[str, Tensor]:
        from sklearn.datasets import make_swiss_roll

        x, _ = make_swiss_roll(self.num_points, noise=self.noise, random_state=self.seed)
        return {"x": torch.from_numpy(x[:, [0, 2]].copy())}


class EightGaussians(Toy):
    """An even mixture of eight Gaussians with means on the unit circle.

    Args:
        noise: Standard deviation of each Gaussian, in radii of the circle.
        conditional: Label each point with its Gaussian, counted from angle 0 anticlockwise.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    parts = 8

    def __init__(self, num_points: int = 10_000, noise: float = 0.1, conditional: bool = False, **kwargs: Any) -> None:
        super().__init__(num_points, noise, conditional, **kwargs)

    def examples(self) -> dict[str, Tensor]:
        generator = self.generator()
        label = torch.randint(8, (self.num_points,), generator=generator)
        angle = label.double() * (math.pi / 4)
        blur = self.noise * torch.randn(self.num_points, 2, generator=generator, dtype=torch.float64)
        return self.labelled(torch.stack((angle.cos(), angle.sin()), 1) + blur, label)


class Checkerboard(Toy):
    """Uniform on the dark squares of a board of 4 x 4 unit squares around the origin.

    Args:
        noise: Blur, as a fraction of the width of a square; 0 keeps the edges sharp.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    def __init__(self, num_points: int = 10_000, noise: float = 0.0, **kwargs: Any) -> None:
        super().__init__(num_points, noise, conditional=False, **kwargs)

    def examples(self) -> dict[str, Tensor]:
        generator = self.generator()
        x = 4 * torch.rand(self.num_points, generator=generator, dtype=torch.float64) - 2
        row = torch.randint(2, (self.num_points,), generator=generator)
        # Of the four squares in a column of the board every other one is dark, beginning with the parity of the column.
        y = torch.rand(self.num_points, generator=generator, dtype=torch.float64) + 2 * row + x.floor() % 2 - 2
        blur = self.noise * torch.randn(self.num_points, 2, generator=generator, dtype=torch.float64)
        return {"x": torch.stack((x, y), 1) + blur}


class Pinwheel(Toy):
    """Five arms that bend round the centre: Gaussians stretched along the radius, twisted by an angle growing with it.

    Args:
        noise: Standard deviation across an arm; along it, it is 0.3 at mean radius 1.
        conditional: Label each point with its arm.
        kwargs: Of `Points`: batch_size, val_fraction, repeats, seed.
    """

    parts = 5

    def __init__(self, num_points: int = 10_000, noise: float = 0.1, conditional: bool = False, **kwargs: Any) -> None:
        super().__init__(num_points, noise, conditional, **kwargs)

    def examples(self) -> dict[str, Tensor]:
        generator = self.generator()
        label = torch.randint(5, (self.num_points,), generator=generator)
        along, across = torch.randn(2, self.num_points, generator=generator, dtype=torch.float64)
        along, across = 1 + 0.3 * along, self.noise * across
        angle = 2 * math.pi / 5 * label + 0.25 * along.exp()
        x = along * angle.cos() - across * angle.sin()
        y = along * angle.sin() + across * angle.cos()
        return self.labelled(torch.stack((x, y), 1), label)
