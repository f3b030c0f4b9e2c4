"""Feature extractors: modules from uint8 images to rows of features.

An extractor maps (B, C, H, W), uint8, to features (B, F), or to (features, logits (B, K)) if it can also classify, as
the Inception Score needs.  Its attribute `resize`, if it has one, says in words how it resizes images.
"""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


class InceptionV3(nn.Module):
    """The Inception network of published FID, IS and KID: 2,048 features and 1,008 logits without bias.

    Images of one channel are shown in grey.

    Reference: Heusel et al., arXiv 1706.08500; the network is torch-fidelity's, equal to the TensorFlow original.

    Args:
        weights: the file of its weights; None: torch-fidelity's own download.
    """

    resize = "bilinear to 299 x 299, as TensorFlow 1 does"

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
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

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        channels = images.shape[1]
        if channels not in (1, 3):
            raise ValueError(f"InceptionV3 sees 1 or 3 channels, these images have {channels}: give another extractor")
        features, logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits


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


@torch.no_grad()
def extract(extractor: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features (B, F) and logits (B, K) or None of images (B, C, H, W), float32, on the CPU.

    Raises:
        ValueError: the images are not uint8, or the extractor does not give one row of features for each.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"features are taken of uint8 images in 0 … 255, got {images.dtype}")
    place = next(extractor.parameters(), torch.empty(0)).device
    output = extractor(images.to(place))
    features, logits = output if isinstance(output, tuple) else (output, None)
    if features.ndim != 2 or len(features) != len(images):
        raise ValueError(
            f"{type(extractor).__name__} makes features of shape {tuple(features.shape)} of {len(images)} images; "
            "they must be (B, F)"
        )
    return features.float().cpu(), None if logits is None else logits.float().cpu()


def _check(path: Path) -> None:
    """Raise ValueError unless the file holds tensors only; torch-fidelity itself would execute a pickle."""
    if not path.is_file():
        raise ValueError(f"extractor.weights: there is no file {path}; it can be downloaded from {URL}")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage makes torch raise nearly anything
        raise ValueError(f"{path} is no file of weights: {str(error).splitlines()[0]}") from error
