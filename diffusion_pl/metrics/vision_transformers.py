"""Feature extractors of the library transformers, from a local folder: DINOv2 and CLIP."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .extractors import in_colour


class _Pretrained(nn.Module):
    """A vision model of transformers, on images that are resized and normalized.

    Args:
        folder: of the model, with config.json and model.safetensors.
        kind: name of its class in transformers.
        size: side of the images that the network gets; None: that of its configuration.
        mean, std: of each colour, of values in 0 … 1.

    Raises:
        ValueError: there is no such folder, it is of another model, or transformers is not installed.
    """

    def __init__(
        self, folder: str, kind: str, size: int | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise ValueError(
                f"extractor {type(self).__name__} needs transformers. Fix: pip install 'diffusion_pl[text]'"
            ) from error
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(
                f"extractor.folder: there is no model in {folder} (expected config.json and model.safetensors). "
                f"Fix: fetch {self.hub} where there is a network, and give its folder"
            )
        messages: Any = transformers.logging
        verbosity = messages.get_verbosity()
        messages.set_verbosity_error()
        try:
            network, notes = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # of many kinds, all of which mean the same
            reason = " ".join(str(error).split())[:200]
            name = type(self).__name__
            raise ValueError(f"extractor.folder: {folder} is not a model for {name}: {reason}") from error
        finally:
            messages.set_verbosity(verbosity)
        if notes["missing_keys"]:
            raise ValueError(
                f"extractor.folder: {folder} is not a model for {type(self).__name__}: it lacks "
                f"{', '.join(sorted(notes['missing_keys'])[:3])}"
            )
        self.network: Any = network.eval().requires_grad_(False)
        self.size: int = size or self.network.config.image_size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    hub = ""  # name of the usual model, for messages

    @property
    def resize(self) -> str:
        """How it resizes images, in words."""
        return f"bicubic with antialiasing to {self.size} x {self.size}"

    def pixels(self, images: Tensor) -> Tensor:
        """What the network gets: (B, 3, size, size), normalized."""
        x = in_colour(images, type(self).__name__).float()
        x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (x / 255 - mean) / std


class DINOv2(_Pretrained):
    """The class token of DINOv2 after the last norm: the features of FD-DINOv2, 1,024 of the usual ViT-L/14.

    Reference: Stein et al., arXiv 2306.04675 (the metric); Oquab et al., arXiv 2304.07193 (the network).

    Args:
        folder: of the model, such as a copy of facebook/dinov2-large.
    """

    part, hub = "fd_dinov2", "facebook/dinov2-large"

    def __init__(self, folder: str) -> None:
        super().__init__(folder, "Dinov2Model", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(self.pixels(images)).pooler_output
        return features


class CLIP(_Pretrained):
    """The image embedding of CLIP, of length 1: the features of CMMD, 768 of the usual ViT-L/14 at 336 x 336.

    Reference: Jayasumana et al., arXiv 2401.09603 (the metric); Radford et al., arXiv 2103.00020 (the network).

    Args:
        folder: of the model, such as a copy of openai/clip-vit-large-patch14-336.
    """

    part, hub = "cmmd", "openai/clip-vit-large-patch14-336"

    def __init__(self, folder: str) -> None:
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        super().__init__(folder, "CLIPVisionModelWithProjection", None, mean, std)

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.network(self.pixels(images)).image_embeds
        return F.normalize(embedding)
