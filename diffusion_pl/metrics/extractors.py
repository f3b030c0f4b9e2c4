"""Feature extractors: modules from uint8 images to rows of features.

An extractor maps (B, C, H, W), uint8, to features (B, F), or to (features, logits (B, K)) if it can also classify, as
the Inception Score needs, or to (features, logits, spatial features (B, S)), as sFID needs.  Its attribute `resize`, if
it has one, says in words how it resizes images, and `part` the name of its statistics in files that have several.
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


class InceptionV3(nn.Module):
    """The Inception network of published FID, IS and KID: 2,048 features and 1,008 logits without bias.

    Images of one channel are shown in grey.  The spatial features of sFID are the first 7 channels of the 1x1 branch of
    Mixed_6d, mixed_6/conv in the TensorFlow original: 17 x 17 x 7 = 2,023 numbers, channels last.

    Reference: Heusel et al., arXiv 1706.08500; the network is torch-fidelity's, equal to the TensorFlow original.
    sFID: Nash et al., arXiv 2103.03841, with the layer of Dhariwal & Nichol, arXiv 2105.05233.

    Args:
        weights: the file of its weights; None: torch-fidelity's own download.
        spatial: whether it also gives the spatial features, for sFID.
    """

    resize = "bilinear to 299 x 299, as TensorFlow 1 does"
    part = "fid"

    def __init__(self, weights: str | None = None, spatial: bool = False) -> None:
        super().__init__()
        self.spatial = spatial
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        if weights is not None:
            _check(Path(weights))
        try:
            self.network: nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights
            )
        except OSError as error:  # urllib's errors are such
            raise ValueError(
                f"the Inception network's weights cannot be downloaded ({error}): fetch {URL} where there is a network "
                "and give --extractor.weights FILE"
            ) from error
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise ValueError(f"{weights} holds weights of another network than torch-fidelity's: {first}") from error

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        images = in_colour(images, "InceptionV3")
        if not self.spatial:
            features, logits = self.network(images)
            return features, logits
        seen: list[Tensor] = []
        layer: Any = self.network.Mixed_6d
        hook = layer.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            features, logits = self.network(images)
        finally:
            hook.remove()
        return features, logits, seen[0][:, :7].permute(0, 2, 3, 1).flatten(1).to(features.dtype)


class DigitsClassifier(nn.Module):
    """A small network that classifies scikit-learn's digits: 64 features and 10 logits, for runs on a laptop."""

    resize = "none"

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
        )
        self.logits = nn.Linear(64, 10)
        with (files(__package__) / "digits.npz").open("rb") as file, np.load(file) as stored:
            weights = {name: torch.from_numpy(stored[name]).float() for name in stored.files}
        # They were trained as one sequence, of which number 11 are the logits.
        logits = {name: value for name, value in weights.items() if name.startswith("11.")}
        named = {f"features.{name}": value for name, value in weights.items() if name not in logits}
        named |= {name.replace("11.", "logits."): value for name, value in logits.items()}
        self.load_state_dict(named)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(f"DigitsClassifier sees images of 1 x 8 x 8, not {'x'.join(map(str, images.shape[1:]))}")
        features = self.features((images.float() * (16 / 255)).round() / 8 - 1)
        return features, self.logits(torch.relu(features))


def identity(extractor: nn.Module) -> dict[str, Any]:
    """What a result must say of its extractor: class, SHA-256 of all its weights, and how it resizes."""
    digest = hashlib.sha256()
    for name, value in sorted(extractor.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    resize = getattr(extractor, "resize", "the extractor's own")
    return {"class": type(extractor).__name__, "sha256": digest.hexdigest(), "resize": resize}


class Extracted(NamedTuple):
    """features: (B, F);  logits: (B, K), K = 0 without;  spatial: (B, S), S = 0 without; float32, on the CPU."""

    features: Tensor
    logits: Tensor
    spatial: Tensor

    @property
    def rows(self) -> Tensor:
        """All of them, one after the other: (B, F + K + S)."""
        return torch.cat(self, 1)

    @property
    def widths(self) -> tuple[int, int, int]:
        """F, K and S."""
        return self.features.shape[1], self.logits.shape[1], self.spatial.shape[1]


@torch.no_grad()
def extract(extractor: nn.Module, images: Tensor) -> Extracted:
    """What an extractor makes of images (B, C, H, W), uint8.

    Raises:
        ValueError: the images are not uint8, or the extractor does not give one row of features for each.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"features are taken of uint8 images in 0 … 255, got {images.dtype}")
    place = next(extractor.parameters(), torch.empty(0)).device
    output = extractor(images.to(place))
    given = output if isinstance(output, tuple) else (output,)
    features = given[0]
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"{type(extractor).__name__} makes features of shape {tuple(features.shape)} of {len(images)} images; "
            "they must be (B, F)"
        )
    parts = [part.float().cpu() for part in given]
    return Extracted(*parts, *[torch.empty(len(images), 0)] * (3 - len(parts)))


def in_colour(images: Tensor, name: str) -> Tensor:
    """Images of 3 channels, of one channel in grey: (B, 3, H, W).

    Args:
        images: (B, C, H, W).
        name: of the extractor, for the message.

    Raises:
        ValueError: they have another number of channels.
    """
    channels = images.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"{name} sees 1 or 3 channels, these images have {channels}: give another extractor")
    return images.expand(-1, 3, -1, -1)


def _check(path: Path) -> None:
    """Raise ValueError unless the file holds tensors only; torch-fidelity itself would execute a pickle."""
    if not path.is_file():
        raise ValueError(f"extractor.weights: there is no file {path}; it can be downloaded from {URL}")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage makes torch raise nearly anything
        raise ValueError(f"{path} is no file of weights: {str(error).splitlines()[0]}") from error
