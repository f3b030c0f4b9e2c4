"""Image encoders whose patch features a hidden layer is aligned with, see `losses.Alignment`."""

import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tensors import Recorded

#: Means and standard deviations of the channels of ImageNet, in [0, 1], which encoders such as DINOv2 expect.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PatchFeatures(Recorded, nn.Module):
    """Features of the patches of images, by an encoder in a folder or file.

    Images are resized (bicubic) and normalized.  A folder of transformers, such as DINOv2's, gives its last hidden
    state without the class token and registers; a program of torch.export (.pt2) or a TorchScript file gives (B, N,
    features) or (B, features, h, w) itself.  It is read when it is first needed: a trained model is loaded without it.

    Reference: Yu et al., arXiv 2410.06940: DINOv2-B at 224 x 224 has 16 x 16 patches of 14, as SiT-XL/2 has at
    256 x 256.

    Args:
        path: Folder of `save_pretrained` of transformers, program of torch.export for any batch size (.pt2), or
            TorchScript file.
        size: Height and width that images are resized to, in pixels.
        mean: Mean of each channel in [0, 1], which is subtracted.
        std: Standard deviation of each channel, positive, which is divided by.
    """

    def __init__(
        self, path: str, size: int = 224, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"PatchFeatures: size must be at least 1, got {size}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"PatchFeatures: expected 3 means and 3 positive stds, got {mean} and {std}")
        self.path, self.size = path, size
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    @cached_property
    def _encoder(self) -> tuple[Any]:
        # In a tuple: it is no part of what holds it.
        path = Path(self.path).expanduser()
        if (path / "config.json").is_file():
            return (_of_transformers(path, self.size).eval().requires_grad_(False),)
        if not path.is_file():
            raise ValueError(
                f"PatchFeatures: {path} is neither a file nor a folder with config.json. Fix: give a folder of "
                "transformers' save_pretrained, a .pt2 file of torch.export or a TorchScript file"
            )
        try:
            with warnings.catch_warnings():  # torch advises those who write TorchScript against it
                warnings.simplefilter("ignore", FutureWarning)
                if path.suffix == ".pt2":
                    return (torch.export.load(path).module(),)
                return (torch.jit.load(str(path), map_location="cpu").eval(),)
        except Exception as error:  # a damaged file shows itself in many ways
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"PatchFeatures: {path} is no .pt2 or TorchScript file: {reason}") from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 1 or 3, H, W), uint8 -> (B, N, features) or (B, features, h, w)."""
        x = images.float().expand(-1, 3, -1, -1) / 255
        x = nn.functional.interpolate(x, (self.size, self.size), mode="bicubic", align_corners=False)
        features: Tensor = self._encoder[0].to(x.device)((x - self.mean.to(x)) / self.std.to(x))
        return features


class _LastHidden(nn.Module):
    """The last hidden state of a model of transformers, of its patches alone.

    Args:
        model: of transformers.
        patches: how many there are, the last tokens; None: as it is.
    """

    def __init__(self, model: Any, patches: int | None) -> None:
        super().__init__()
        self.model, self.patches = model, patches

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.model(pixel_values=x).last_hidden_state
        return hidden if hidden.ndim == 4 or self.patches is None else hidden[:, -self.patches :]


def _of_transformers(path: Path, size: int) -> nn.Module:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ValueError("PatchFeatures: a folder needs the package transformers: pip install transformers") from error
    try:
        patch = json.loads((path / "config.json").read_text(encoding="utf-8")).get("patch_size")
        model = AutoModel.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise ValueError(f"PatchFeatures: {path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if isinstance(patch, int) and size % patch:
        raise ValueError(f"PatchFeatures: size must be a multiple of {patch}, the encoder's patches, got {size}")
    return _LastHidden(model, (size // patch) ** 2 if isinstance(patch, int) else None)
