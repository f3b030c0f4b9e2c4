"""Alignment of a hidden layer with an image encoder: REPA's term, in the loss and in a whole run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import by_class
from latents_folder import write_latents
from shell import ROOT, cli
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_pl.checkpoints.loading import load_model
from diffusion_pl.denoisers import NetworkDenoiser, Velocity
from diffusion_pl.losses import Alignment, DenoisingLoss, FlowMatching, Losses, MinibatchOT, UniformTimes
from diffusion_pl.networks import DiT, UNet
from diffusion_pl.schedules import Rectified
from diffusion_pl.training import PatchFeatures


class Patches(nn.Module):
    """Values of each patch of 4 x 4 pixels: (B, 16 C, h, w), or tokens of it."""

    def __init__(self, size: int = 4, tokens: bool = False) -> None:
        super().__init__()
        self.size, self.tokens = size, tokens
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        features = F.pixel_unshuffle(images.float(), self.size) * self.scale
        return features.flatten(2).transpose(1, 2) if self.tokens else features


def made(layer: str = "blocks.0", extractor: nn.Module | None = None, **options: Any) -> Alignment:
    torch.manual_seed(0)
    return Alignment(layer, extractor or Patches(), **{"width": 16, "features": 16, "hidden": 8} | options)


def denoiser(network: nn.Module | None = None, **options: Any) -> NetworkDenoiser:
    torch.manual_seed(0)
    network = network or DiT((1, 8, 8), by_class(3), patch_size=4, width=16, depth=2, heads=2, **options)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return NetworkDenoiser(network, Rectified(), Velocity())


def losses(model: NetworkDenoiser, alignment: Alignment | None, images: Tensor | None, **options: Any) -> Tensor:
    loss = DenoisingLoss(UniformTimes(), FlowMatching(), alignment=alignment, **options)
    made: Losses = loss(model, IMAGES, {}, torch.Generator().manual_seed(3), images=images)
    return made.loss


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("options", [{}, {"registers": 2, "in_context": 3, "in_context_start": 1}], ids=["", "tokens"])
@pytest.mark.parametrize("layer", ["blocks.0", "blocks.1"])
def test_the_term_is_the_cosine_of_each_patch(layer: str, options: dict[str, Any]) -> None:
    """In numpy's terms: of the last tokens of the layer, patch by patch."""
    model, alignment = denoiser(**options), made(layer, weight=0.7)
    seen: list[Tensor] = []
    model.network.get_submodule(layer).register_forward_hook(lambda part, args, out: seen.append(out))
    difference = (losses(model, alignment, IMAGES) - losses(model, None, None)).detach()
    projected = alignment.projector(seen[0][:, -4:]).detach()
    levels = ((IMAGES + 1) * 127.5).round()
    for example in range(4):
        cosines = []
        for n, (i, j) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            y, h = levels[example, 0, i : i + 4, j : j + 4].flatten(), projected[example, n]
            cosines.append(float(y @ h / (y.norm() * h.norm())))
        expected = 0.7 * (1 - sum(cosines) / 4)
        assert float(difference[example]) == pytest.approx(expected, abs=1e-5)


def test_tokens_and_maps_of_features_are_the_same() -> None:
    model = denoiser()
    one = losses(model, made(extractor=Patches(tokens=True)), IMAGES)
    torch.testing.assert_close(one, losses(model, made(), IMAGES))


def test_it_trains_the_projector_and_the_layers_before_it() -> None:
    model, extractor = denoiser(checkpointing=True), Patches()
    alignment = made(extractor=extractor)
    network: Any = model.network
    with torch.no_grad():
        network.output.weight.zero_()  # so that the denoising loss says nothing to the blocks
    losses(model, alignment, IMAGES, times_per_sample=2).sum().backward()
    gradients = dict[str, Any]({name: p.grad for name, p in network.named_parameters()})
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in alignment.parameters())
    assert gradients["blocks.0.qkv.weight"].abs().sum() > 0
    assert gradients["blocks.1.qkv.weight"].abs().sum() == 0
    assert extractor.scale.grad is None
    assert not [name for name in alignment.state_dict() if "scale" in name]


def test_perfect_alignment_costs_nothing() -> None:
    alignment = made()
    tokens = F.pixel_unshuffle(((IMAGES + 1) * 127.5).round(), 4).flatten(2).transpose(1, 2)
    alignment.projector = nn.Identity()  # type: ignore[assignment]
    assert float(alignment([3 * tokens], IMAGES, nn.Identity()).abs().max()) < 1e-6


def test_a_unet_is_aligned_where_it_has_a_map() -> None:
    network = UNet((1, 8, 8), nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=())
    model = denoiser(network)
    assert losses(model, made("middle.0", Patches(2), features=4), IMAGES).isfinite().all()
    with pytest.raises(ValueError, match=r"middle.0 has a grid of 4x4, the extractor's features a grid of 2x2"):
        losses(model, made("middle.0"), IMAGES)


def test_it_is_not_part_of_the_loss_in_evaluation() -> None:
    model = denoiser().eval()
    assert torch.equal(losses(model, made(), None), losses(model, None, None))


@pytest.mark.parametrize(
    ("alignment", "images", "message"),
    [
        (lambda: made(width=8), IMAGES, "has 16 channels, got width 8. Fix: set model.loss.alignment.width to 16"),
        (lambda: made(features=8), IMAGES, "Fix: set model.loss.alignment.features to 16"),
        (
            lambda: made(extractor=Patches(2), features=4),
            IMAGES,
            r"4 tokens, the extractor's .* 4x4 of images of 8x8",
        ),
        (lambda: made(), torch.zeros(4, 2, 8, 8), "needs images of 1 or 3 channels"),
        (lambda: made(extractor=nn.Flatten()), IMAGES, r"Flatten gives \(4, 64\) of 4 images, expected \(B, N"),
        (lambda: made(), None, "needs images"),
        (lambda: made("label"), IMAGES, "output of label could not be seen"),
    ],
)
def test_what_does_not_fit_is_one_line(alignment: Any, images: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses(denoiser(), alignment(), images)


def test_a_layer_that_does_not_exist_is_refused_first() -> None:
    loss = DenoisingLoss(UniformTimes(), FlowMatching(), alignment=made("blocks.9"))
    with pytest.raises(ValueError, match=r"DiT has no module 'blocks.9'. Fix: .*blocks.0 to blocks.1"):
        loss.check(denoiser(), (1, 8, 8), {})
    with pytest.raises(ValueError, match="alignment and coupling exclude each other"):
        DenoisingLoss(UniformTimes(), FlowMatching(), MinibatchOT(), alignment=made())
    for option in ("width", "features", "hidden", "weight"):
        with pytest.raises(ValueError, match=f"Alignment: {option} must be"):
            made(**dict[str, Any]({option: 0}))


def test_features_of_files_and_folders(tmp_path: Path) -> None:
    images = (torch.rand(2, 3, 20, 20) * 255).to(torch.uint8)
    traced = torch.jit.trace(nn.Conv2d(3, 5, 8, 8), torch.zeros(1, 3, 16, 16))
    traced.save(str(tmp_path / "patches.pt"))
    features = PatchFeatures(str(tmp_path / "patches.pt"), size=16)
    assert features(images).shape == features(images[:, :1]).shape == (2, 5, 2, 2)
    assert not features.state_dict()
    batch = {"input": (torch.export.Dim("batch"), None, None, None)}
    exported = torch.export.export(nn.Conv2d(3, 5, 8, 8).eval(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=batch)
    torch.export.save(exported, tmp_path / "patches.pt2")
    assert PatchFeatures(str(tmp_path / "patches.pt2"), size=16)(images[:1]).shape == (1, 5, 2, 2)
    from transformers import Dinov2Config, Dinov2Model

    small = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    torch.manual_seed(0)
    encoder: Any = Dinov2Model(small)
    encoder.eval()
    encoder.save_pretrained(tmp_path / "dino")
    features = PatchFeatures(str(tmp_path / "dino"), size=28)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = F.interpolate(images.float() / 255, (28, 28), mode="bicubic")
    with torch.no_grad():
        expected = encoder(pixel_values=(seen - mean) / std).last_hidden_state[:, 1:]
    torch.testing.assert_close(features(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("nothing", {}, "neither a file nor a folder with config.json"),
        ("broken.pt", {}, "no .pt2 or TorchScript file"),
        ("broken", {}, "cannot be read"),
        ("broken", {"size": 0}, "size must be at least 1"),
        ("broken", {"std": (1.0, 1.0, 0.0)}, "3 positive stds"),
    ],
)
def test_bad_encoders_are_one_line(tmp_path: Path, path: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        PatchFeatures(str(tmp_path / path), **options)(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def run(folder: Path, *args: Any) -> Any:
    where = "--model.loss.init_args.alignment"
    alignment = [f"{where}.layer", "blocks.0", f"{where}.width", 16, f"{where}.features", 5, f"{where}.hidden", 8]
    alignment += [f"{where}.extractor", "diffusion_pl.training.PatchFeatures"]
    alignment += [f"{where}.extractor.path", "patches.pt", f"{where}.extractor.size", 16]
    network = ["--model.network.width", 16, "--model.network.depth", 2, "--model.network.heads", 2]
    trainer = ["--trainer.callbacks", "[]", "--trainer.logger", "false", "--trainer.accelerator", "cpu"]
    config = ["--config", ROOT / "configs/digits/dit.yaml", "--run", "aligned", "--data.batch_size", 16]
    return cli(folder, "fit", *config, *alignment, *network, *trainer, *args)


def test_a_run_of_latents_keeps_the_projector_and_resumes(tmp_path: Path) -> None:
    """The network is not exported with it, and a trained model needs no encoder."""
    write_latents(tmp_path / "latents")
    traced = torch.jit.trace(nn.Conv2d(1, 5, 8, 8), torch.zeros(1, 1, 16, 16))

    class Grey(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1]

    grey = torch.jit.trace(nn.Sequential(Grey(), traced), torch.zeros(1, 3, 16, 16))
    grey.save(str(tmp_path / "patches.pt"))
    latents = ["--data", "Latents", "--data.path", "latents", "--data.batch_size", 16]
    done = run(tmp_path, *latents, "--trainer.max_steps", 2)
    assert done.code == 0, done.err
    resumed = run(tmp_path, *latents, "--trainer.max_steps", 3, "--ckpt_path", "last")
    assert resumed.code == 0, resumed.err
    (tmp_path / "patches.pt").unlink()
    content = torch.load(tmp_path / "runs/aligned/checkpoints/last.ckpt", weights_only=True)
    projector = [name for name in content["state_dict"] if name.startswith("loss.alignment.projector")]
    assert len(projector) == 6
    assert set(projector) <= set(content["averages"]["shadows"]["0.999"])
    model, _ = load_model(tmp_path / "runs/aligned")
    assert model.live_pipeline()(2, steps=2).shape == (2, 4, 4, 4)
    exported = cli(tmp_path, "export", "--ckpt_path", "runs/aligned", "--to", "safetensors", "--output", "exported")
    assert exported.code == 0, exported.err
    assert load_model(tmp_path / "exported")[0].network.state_dict().keys() == model.network.state_dict().keys()
