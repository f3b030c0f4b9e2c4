"""Images of which latents are made in training, on its device: for latents that are too large to be stored."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .latent_draws import LatentSource, mirrored, noise
from .loader import Batch, Source

_EPS = "latent_eps"  # of a batch: noise, in the shape of its latents


class Online(LatentSource):
    """The images of a split, which are encoded where a batch is used: without gradients, in float32.

    The noise of a batch, (B, c, h, w), is drawn where the batch is read, so that it is that of stored latents.

    Args:
        images: of the split, as they are stored.
        views: see `LatentSource`.
        noise_shape: (c, h, w) of ε; None: the autoencoder has no noise.
        mirrored_too: names of conditions that are images.
        prepare: makes {"x": images in [−1, 1], and the conditions} of what `images` gives.
        encode: images in [−1, 1], (B, C, H, W), to mean and std: (B, 2, c, h, w).
    """

    def __init__(
        self,
        images: Source,
        views: int,
        noise_shape: Sequence[int] | None,
        mirrored_too: Sequence[str],
        prepare: Callable[[Batch], Batch],
        encode: Callable[[Tensor], Tensor],
    ) -> None:
        self.images, self.views, self.noise_shape, self.mirrored_too = images, views, noise_shape, mirrored_too
        self._prepare, self._encode = prepare, encode

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepare": None, "_encode": None}  # worker processes only read

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Tensor) -> Batch:
        return self.images.__getitems__(indices)

    def seen(self, batch: Batch, view: Tensor) -> Batch:
        if self.views == 1:
            return batch
        # Others, such as a low resolution, are made of the images on the device.
        return mirrored(batch, ["x", *(name for name in self.mirrored_too if name in batch)], view)

    def with_noise(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        return batch if self.noise_shape is None else {**batch, _EPS: noise(seeds, self.noise_shape)}

    def conditioned(self, batch: Batch) -> Batch:
        return self._prepare({name: value for name, value in batch.items() if name != _EPS})

    def latents(self, batch: Batch) -> Batch:
        ready = self.conditioned(batch)
        mean, std = self._encode(ready["x"]).unbind(1)
        return {**ready, "x": mean.addcmul(std, batch[_EPS]) if _EPS in batch else mean}
