"""A residual multilayer perceptron for points, with interchangeable embeddings of position and noise level.

    h_0 = GELU(W_in [e_x(x), e_t(c_noise)] + conditions),   h_i = h_{i-1} + GELU(W_i h_{i-1} + b_i),   F = W_out h_depth

x is the scaled noisy point and c_noise the noise level, both of order one. A network of this size cannot bend within a
fraction of a unit when fed plain coordinates; sines and cosines of the coordinates at random frequencies let it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..conditions import Conditions
from .conditioning import Conditioning, LabelEmbedding
from .embeddings import Embedding, Identity, JumpEmbedding, check_jump


class Block(nn.Module):
    """h + GELU(W h + b). h: (B, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return h + nn.functional.gelu(self.linear(h))


class MLP(nn.Module):
    """Residual multilayer perceptron on points.

    Args:
        shape: Shape of one example, (D,).
        conditions: Of the data: labels, vectors and sequences, of whose embedded tokens the mean is added; no images.
        width: Width of the hidden layers.
        depth: Number of residual blocks.
        input_embedding: Embedding of the D coordinates; None takes them as they are.
        time_embedding: Embedding of the noise level; None takes it as it is, ``Blind`` leaves it out.
        flow_map: Whether the network takes the length of a flow map's jump (`JumpEmbedding`), for FlowMapLoss.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions | None = None,
        width: int = 128,
        depth: int = 3,
        input_embedding: Callable[[int], Embedding] | None = None,
        time_embedding: Callable[[int], Embedding] | None = None,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        if len(shape) != 1 or shape[0] < 1:
            raise ValueError(f"MLP: needs data of shape (D,), got {tuple(shape)}: choose another network")
        if width < 1 or depth < 1:
            raise ValueError(f"MLP: width and depth must be at least 1, got width {width}, depth {depth}")
        (dim,) = shape
        self.input_embedding = (input_embedding or Identity)(dim)
        self.time_embedding = (time_embedding or Identity)(1)
        self.cond = Conditioning("MLP", shape, conditions, width, ("label", "vector", "sequence"))
        self.label = LabelEmbedding("MLP", self.cond.label, width)
        self.input = nn.Linear(self.input_embedding.width + self.time_embedding.width, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.output = nn.Linear(width, dim)
        self.flow_map, self.jump = flow_map, JumpEmbedding(width) if flow_map else None

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, jump: Tensor | None = None, **cond: Tensor
    ) -> Tensor:
        """The raw network output F.

        Args:
            x: Scaled noisy points, (B, D).
            c_noise: Noise level, of order one, (B,).
            label: Classes, int64, (B,); −1 or None means any class.
            jump: Length of a flow map's jump, t − r, (B,); None means 0.
            cond: Other conditions by name, (B, *shape) each; NaN or none means not given.

        Raises:
            ValueError: a condition that the network was not built for.
        """
        check_jump("MLP", self.jump, jump)
        values = self.cond.check(cond, x)
        h = self.input(torch.cat((self.input_embedding(x), self.time_embedding(c_noise.unsqueeze(1))), 1))
        h = self.cond.add(self.label(h, label), values)
        h = h if self.jump is None else self.jump(h, jump)
        context = self.cond.context(values)
        h = h if context is None else h + context.mean()
        output: Tensor = self.output(self.blocks(nn.functional.gelu(h)))
        return output
