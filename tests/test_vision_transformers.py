"""DINOv2 and CLIP as extractors from local folders, spatial features of Inception, and CMMD."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_pl.metrics import CLIP, DINOv2
from diffusion_pl.metrics.extractors import extract, identity
from diffusion_pl.metrics.generation import cmmd

transformers = pytest.importorskip("transformers")
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models with random weights, in the folders that transformers writes, with their own preprocessing."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=28, **SMALL)).save_pretrained(folder / "dinov2")
    config = transformers.CLIPVisionConfig(image_size=28, intermediate_size=32, projection_dim=8, **SMALL)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    return folder


def photo(side: int = 20) -> Tensor:
    return torch.randint(256, (2, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def by_pillow(images: Tensor, side: int, mean: Any, std: Any) -> Tensor:
    """Resized by Pillow, which is what the processors of transformers use."""
    whole = [Image.fromarray(x.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC) for x in images]
    pixels = torch.from_numpy(np.stack([np.asarray(x) for x in whole])).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def test_dinov2_gives_the_models_class_token(models: Path) -> None:
    features, logits, spatial = extract(DINOv2(str(models / "dinov2")), photo())
    assert (features.shape, logits.shape[1], spatial.shape[1]) == ((2, 16), 0, 0)
    pixels = by_pillow(
        photo(), 224, transformers.image_utils.IMAGENET_DEFAULT_MEAN, transformers.image_utils.IMAGENET_DEFAULT_STD
    )
    model = transformers.Dinov2Model.from_pretrained(models / "dinov2").eval()
    with torch.no_grad():
        token = model(pixels).last_hidden_state[:, 0]
    assert (features - token).norm() < 0.01 * token.norm()  # Pillow rounds to 8 bits


def test_clip_gives_embeddings_of_length_1(models: Path) -> None:
    features = extract(CLIP(str(models / "clip")), photo()).features
    assert features.norm(dim=1).tolist() == pytest.approx([1, 1], rel=1e-5)
    mean, std = transformers.image_utils.OPENAI_CLIP_MEAN, transformers.image_utils.OPENAI_CLIP_STD
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(models / "clip").eval()
    with torch.no_grad():
        embedding = torch.nn.functional.normalize(model(by_pillow(photo(), 28, mean, std)).image_embeds)
    assert (features - embedding).norm() < 0.02 * embedding.norm()


def test_they_are_known_by_their_weights_and_see_grey(models: Path) -> None:
    extractor = DINOv2(str(models / "dinov2"))
    assert identity(extractor)["class"] == "DINOv2"
    assert "224 x 224" in identity(extractor)["resize"]
    grey = photo()[:, :1]
    torch.testing.assert_close(
        extract(extractor, grey).features, extract(extractor, grey.expand(-1, 3, -1, -1)).features
    )


def test_bad_folders_are_refused_in_a_line(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"extractor\.folder: there is no model in .*Fix: fetch facebook/dinov2-large"):
        DINOv2(str(tmp_path))
    with pytest.raises(ValueError, match="is not a model for CLIP"):
        CLIP(str(models / "dinov2"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a model for DINOv2"):
        DINOv2(str(tmp_path))
    with pytest.raises(ValueError, match="CLIP sees 1 or 3 channels"):
        extract(CLIP(str(models / "clip")), torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def on_circle(angles: list[float]) -> Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_cmmd_of_single_embeddings_has_a_closed_form() -> None:
    for angle in (0.0, 0.2, 2.0):
        # d² = 2 − 2 cos φ, and the kernel of a row with itself is 1.
        expected = 1000 * (2 - 2 * math.exp(-(2 - 2 * math.cos(angle)) / 200))
        assert cmmd(on_circle([0]), on_circle([angle])) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_cmmd_is_the_mean_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator).double()) for n in (2100, 30))
    kernel = [torch.exp(-torch.cdist(a, b).square() / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert cmmd(x, y) == pytest.approx(1000 * float(kernel[0] + kernel[1] - 2 * kernel[2]), rel=1e-6)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_cmmd_of_other_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embeddings of length 1.*--extractor CLIP"):
        cmmd(torch.ones(3, 8), torch.ones(3, 8))
