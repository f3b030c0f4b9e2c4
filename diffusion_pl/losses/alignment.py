"""Alignment of a hidden layer of the network with features of an image encoder.

    L = L_denoising + weight · mean over patches of  1 − cos(g(h_n), y_n)

h_n: the layer's token n, of the noisy example;  y_n: the encoder's feature of the same patch of the image itself;  g:
an MLP that is trained with the network and used for nothing else.

Reference: Yu et al., "Representation alignment for generation", arXiv 2410.06940, Eq. 8 and 9 (without the constant 1).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..tensors import Recorded


class Alignment(Recorded, nn.Module):
    """REPA: a term of DenoisingLoss, in training only.

    Args:
        layer: name of a module within the network, such as blocks.7, the 8th block of a DiT: its output is aligned.
        extractor: image encoder, such as PatchFeatures: (B, C, H, W), uint8 -> (B, N, features) or (B, features, h, w).
            Its weights are not part of the model.
        width: channels of the layer's output.
        features: channels of the extractor's features.
        hidden: width of the two hidden layers of g.
        weight: factor of the term.
    """

    def __init__(
        self, layer: str, extractor: nn.Module, width: int, features: int, hidden: int = 2048, weight: float = 0.5
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("features", features), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"Alignment: {name} must be at least 1, got {value}")
        if not 0 < weight < math.inf:
            raise ValueError(f"Alignment: weight must be positive and finite, got {weight}")
        self.layer, self.width, self.features, self.weight = layer, width, features, weight
        self.projector = nn.Sequential(
            *(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, features))
        )
        # In a tuple: its weights are not trained, not in checkpoints, and not averaged.
        self._extractor = (extractor.eval().requires_grad_(False),)

    def check(self, network: nn.Module) -> None:
        """Raise ValueError if the network has no such layer."""
        parts = {name: part for name, part in network.named_modules() if name}
        if self.layer not in parts:
            lists = {name: len(part) for name, part in parts.items() if isinstance(part, nn.ModuleList) and len(part)}
            longest = max(lists, key=lambda name: lists[name], default="")
            such = f"{longest}.0 to {longest}.{lists[longest] - 1}" if longest else ", ".join([*parts][:6])
            raise ValueError(
                f"model.loss.alignment.layer: {type(network).__name__} has no module {self.layer!r}. Fix: give one of "
                f"its modules, such as {such}"
            )

    @contextmanager
    def listen(self, network: nn.Module) -> Iterator[list[Tensor]]:
        """Within, the outputs of the layer are appended to the list."""
        outputs: list[Tensor] = []
        handle = network.get_submodule(self.layer).register_forward_hook(lambda part, args, out: outputs.append(out))
        try:
            yield outputs
        finally:
            handle.remove()

    def forward(self, outputs: list[Tensor], images: Tensor, network: nn.Module) -> Tensor:
        """weight · (1 − cos), mean over patches: (K B,), of K noisy copies of the images.

        Args:
            outputs: of the layer, see `listen`: (K B, M, width) or (K B, width, h, w).
            images: in [−1, 1], (B, C, H, W).
            network: for how many tokens it has that are no patches.

        Raises:
            ValueError: layer and extractor have other channels than given here, or other grids.
        """
        if not outputs or not isinstance(outputs[-1], Tensor) or outputs[-1].ndim < 3:
            raise ValueError(
                f"Alignment: the output of {self.layer} could not be seen, or is not one vector for each patch. Fix: "
                "give another model.loss.alignment.layer, and set model.compile to false"
            )
        target = self._target(images)
        tokens, grid = _tokens(outputs[-1])
        if tokens.shape[2] != self.width:
            raise ValueError(
                f"Alignment: the output of {self.layer} has {tokens.shape[2]} channels, got width {self.width}. Fix: "
                f"set model.loss.alignment.width to {tokens.shape[2]}"
            )
        features, other = _tokens(target)
        if features.shape[2] != self.features:
            raise ValueError(
                f"Alignment: the extractor gives {features.shape[2]} features, got features {self.features}. Fix: "
                f"set model.loss.alignment.features to {features.shape[2]}"
            )
        extra = tokens.shape[1] - features.shape[1]
        if extra not in (0, *getattr(network, "extra_tokens", ())) or (grid and other and grid != other):
            raise ValueError(
                f"Alignment: {self.layer} has {_grid(tokens, grid)}, the extractor's features {_grid(features, other)} "
                f"of images of {images.shape[2]}x{images.shape[3]}. Fix: set the size that the extractor resizes "
                "images to, so that both have one token for the same patch"
            )
        projected = self.projector(tokens[:, extra:])
        copies = len(tokens) // len(features)
        cosine = F.cosine_similarity(projected.float(), features.repeat(copies, 1, 1).float(), dim=2)
        loss: Tensor = self.weight * (1 - cosine).mean(1)
        return loss

    @torch.no_grad()
    def _target(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"Alignment: the extractor needs images of 1 or 3 channels, got {tuple(images.shape[1:])}. Fix: train "
                "on images, or on latents by the data class Latents, which decodes them"
            )
        extractor = self._extractor[0].to(images.device)
        seen = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        features = extractor(seen)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4) or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"Alignment: {type(extractor).__name__} gives {shape} of {len(images)} images, expected (B, N, "
                "features) or (B, features, h, w)"
            )
        return features


def _tokens(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """(B, N, C), and (h, w) where it is known."""
    return (x, ()) if x.ndim == 3 else (x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))


def _grid(tokens: Tensor, grid: tuple[int, ...]) -> str:
    return f"a grid of {'x'.join(map(str, grid))}" if grid else f"{tokens.shape[1]} tokens"
