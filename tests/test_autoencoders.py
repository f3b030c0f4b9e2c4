"""Autoencoders: moments, folders, hashes, those of diffusers, training objectives against closed forms."""

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from diffusion_pl.autoencoders import (
    KL,
    VQ,
    Autoencoder,
    Moments,
    Orthogonal,
    Trained,
    open_autoencoder,
    save_autoencoder,
    weights_hash,
)
from diffusion_pl.autoencoders.convolutional import Reconstruction
from diffusion_pl.autoencoders.kl import kl
from diffusion_pl.training import AutoencoderModule, psnr
from diffusion_pl.training.perceptual import PatchDiscriminator, balance, frozen_call

SMALL: dict[str, Any] = {"nf": 8, "ch_mult": (1, 2)}
OWN = [
    lambda: KL((1, 8, 8), **SMALL),
    lambda: VQ((3, 8, 12), codes=16, **SMALL),
    lambda: Orthogonal((3, 8, 8), 4),
]


def theirs(kind: str) -> Any:
    """A tiny model of diffusers, factor 2, of images of 3 channels."""
    two = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    unet = {**two, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    tiny = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    makers: dict[str, Any] = {
        "AutoencoderKL": lambda: diffusers.AutoencoderKL(**unet, latent_channels=4),
        "VQModel": lambda: diffusers.VQModel(**unet, latent_channels=3, num_vq_embeddings=16),
        "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
            **tiny, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4
        ),
        "AutoencoderDC": lambda: diffusers.AutoencoderDC(
            **tiny,
            latent_channels=4,
            attention_head_dim=4,
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_block_types="ResBlock",
            decoder_block_types="ResBlock",
            encoder_qkv_multiscales=((), ()),
            decoder_qkv_multiscales=((), ()),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
        ),
    }
    torch.manual_seed(0)
    return makers[kind]().eval()


@pytest.mark.parametrize("make", OWN, ids=["KL", "VQ", "Orthogonal"])
def test_a_folder_gives_back_the_same_autoencoder(make: Any, tmp_path: Path) -> None:
    own = make()
    shape = {1: (1, 8, 8), 3: (3, 8, 12)}[own.image_channels]
    x = torch.rand(2, *shape) * 2 - 1
    moments = own.encode(x)
    assert moments.mean.shape == moments.std.shape == (2, *own.latent_shape(shape))
    assert own.decode(moments.mean).shape == x.shape
    save_autoencoder(own, tmp_path)
    again = open_autoencoder(str(tmp_path))
    assert weights_hash(again) == weights_hash(own) and not again.training
    assert torch.equal(again.encode(x).mean, moments.mean)
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC"])
def test_those_of_diffusers_encode_as_they_do(kind: str, tmp_path: Path) -> None:
    model, x = theirs(kind), torch.rand(2, 3, 8, 8) * 2 - 1
    model.save_pretrained(tmp_path)
    ours = open_autoencoder(str(tmp_path))
    assert ours.latent_shape((3, 8, 8)) == tuple(ours.encode(x).mean.shape[1:]) and ours.factor == 2
    model.requires_grad_(False)
    encoded = model.encode(x)
    if kind == "AutoencoderKL":
        expected, std = encoded.latent_dist.mean, encoded.latent_dist.std
    else:
        expected = encoded.latent if kind == "AutoencoderDC" else encoded.latents
        std = torch.zeros_like(expected)
    for value, like in zip((*ours.encode(x), ours.decode(expected)), (expected, std, model.decode(expected).sample),
                           strict=True):  # fmt: skip
        torch.testing.assert_close(value, like, rtol=0, atol=1e-5 * max(1.0, like.abs().max().item()))
    again = tmp_path / "again"
    again.mkdir()
    save_autoencoder(ours, again)
    assert weights_hash(open_autoencoder(str(again))) == weights_hash(ours)


def test_the_hash_depends_on_values_names_and_shapes() -> None:
    one, two = nn.Linear(2, 3), nn.Linear(2, 3)
    assert weights_hash(one) != weights_hash(two)
    two.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(two) != weights_hash(nn.Sequential(two))
    with torch.no_grad():
        two.weight[0, 0] = math.nextafter(float(two.weight[0, 0]), 9) + 1e-6
    assert weights_hash(one) != weights_hash(two)


@pytest.mark.parametrize(
    ("shape", "named"), [((3, 8, 8), "channels"), ((1, 9, 8), "8 x 8"), ((1, 8, 7), "size"), ((8,), "images")]
)
def test_images_that_do_not_fit_are_refused(shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        KL((1, 8, 8), **SMALL).latent_shape(shape)


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "no"), "no-such-thing"):
        with pytest.raises(ValueError, match="autoencoder"):
            open_autoencoder(name)
    save_autoencoder(KL((1, 8, 8), **SMALL), tmp_path)
    content = json.loads((tmp_path / "autoencoder.json").read_text())
    (tmp_path / "autoencoder.json").write_text(json.dumps({**content, "class_path": "os.system"}))
    with pytest.raises(ValueError, match="DIFFUSION_PL_TRUST"):
        open_autoencoder(str(tmp_path))
    (tmp_path / "autoencoder.json").write_text(json.dumps(content))
    weights = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="damaged"):
        open_autoencoder(str(tmp_path))
    other = tmp_path / "unet"
    diffusers.UNet2DModel(sample_size=8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                          up_block_types=("UpBlock2D",) * 2).save_pretrained(other)  # fmt: skip
    with pytest.raises(ValueError, match="UNet2DModel"):
        open_autoencoder(str(other))


def test_the_orthogonal_one_is_an_isometry() -> None:
    auto, x = Orthogonal((3, 8, 12), 4), torch.randn(2, 3, 8, 12, dtype=torch.float64)
    z = auto.encode(x).mean
    torch.testing.assert_close(auto.decode(z), x, rtol=0, atol=1e-13)
    torch.testing.assert_close(z.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    flat = torch.ones(1, 3, 8, 12, dtype=torch.float64)
    z = auto.encode(flat).mean.unflatten(1, (3, 16))
    torch.testing.assert_close(z[:, :, 0], torch.full_like(z[:, :, 0], 4.0))  # of the DCT's first: sqrt of 16 pixels
    assert z[:, :, 1:].abs().max() < 1e-13


def test_kl_is_that_of_torch_distributions() -> None:
    mean, std = torch.randn(5, 4, 3, 3), torch.rand(5, 4, 3, 3) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl(Moments(mean, std)), expected)


def test_vq_takes_the_nearest_code_and_passes_gradients_through() -> None:
    torch.manual_seed(0)
    vq = VQ((1, 8, 8), codes=7, **SMALL)
    z = torch.randn(2, 4, 4, 4, requires_grad=True)
    q = vq.quantized(z)
    for b, i, j in ((0, 0, 0), (1, 3, 2)):
        distances = [(z[b, :, i, j] - code).norm() for code in vq.codebook]
        assert torch.equal(q[b, :, i, j], vq.codebook[distances.index(min(distances))])
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    x_hat, penalty = vq.reconstruct(x, torch.zeros(3, 4, 4, 4))
    z = vq.encode(x).mean
    expected = 1.25 * (z - vq.quantized(z)).square().flatten(1).mean(1)
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(x_hat, vq.decode(z), rtol=0, atol=1e-5)
    x_hat.square().sum().backward()
    first = next(vq.encoder.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0 and vq.codebook.grad is None


class LinearVAE(Trained):
    """z ~ N(V x, diag(d²)), x̂ = W z."""

    def __init__(self, dims: int, latent: int) -> None:
        super().__init__()
        self.image_channels, self.latent_channels, self.factor = dims, latent, 1
        generator = torch.Generator().manual_seed(1)
        self.into = nn.Parameter(0.3 * torch.randn(latent, dims, generator=generator, dtype=torch.float64))
        self.out = nn.Parameter(0.3 * torch.randn(dims, latent, generator=generator, dtype=torch.float64))
        self.log_std = nn.Parameter(torch.zeros(latent, dtype=torch.float64))

    def encode(self, x: Tensor) -> Moments:
        mean = torch.einsum("ij,bjhw->bihw", self.into, x)
        return Moments(mean, self.log_std.exp()[:, None, None].expand_as(mean))

    def decode(self, z: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", self.out, z)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.out

    def reconstruct(self, x: Tensor, eps: Tensor) -> Reconstruction:
        moments = self.encode(x)
        return Reconstruction(self.decode(moments.mean + moments.std * eps), kl(moments) / x[0].numel())


def test_the_optimum_of_a_linear_vae_is_probabilistic_pca() -> None:
    """Loss of AutoencoderModule with distance l2 and weight 2 s² = the negative ELBO: at its optimum W Wᵀ + s² is the
    PPCA covariance of the data, and the ELBO is the exact log-likelihood (Tipping & Bishop 1999, Eq. 7 and 8; Lucas et
    al., arXiv 1911.02469, Sec. 4)."""
    dims, latent, s2, n = 5, 2, 0.3, 400
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dims, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 1.3, 0.4, 0.3, 0.2])
    x = x @ torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]
    x = x - x.mean(0)
    covariance = x.T @ x / n
    values, vectors = torch.linalg.eigh(covariance)
    W = vectors[:, -latent:] * (values[-latent:] - s2).sqrt()
    model = W @ W.T + s2 * torch.eye(dims, dtype=torch.float64)
    exact = 0.5 * (torch.logdet(2 * math.pi * model) + torch.trace(torch.linalg.solve(model, covariance)))

    # Expectations over ε of quadratic functions are exact on these 2k points.
    points = math.sqrt(latent) * torch.cat((torch.eye(latent), -torch.eye(latent))).double()
    images = x.repeat_interleave(len(points), 0)[:, :, None, None]
    eps = points.repeat(n, 1)[:, :, None, None]
    vae = AutoencoderModule(
        lambda shape: LinearVAE(dims, latent), torch.optim.SGD, distance="l2", weight=2 * s2, shape=(dims, 1, 1)
    )
    own = vae.autoencoder
    assert isinstance(own, LinearVAE)
    solver = torch.optim.LBFGS(own.parameters(), max_iter=400, tolerance_grad=1e-11, tolerance_change=1e-15,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> Tensor:
        x_hat, penalty = own.reconstruct(images, eps)
        return (vae.distance(x_hat, images, reduction="none").flatten(1).mean(1) + vae.weight * penalty).mean()

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss()
        value.backward()
        return value

    solver.step(closure)
    nll = loss().item() * dims / (2 * s2) + dims / 2 * math.log(2 * math.pi * s2)
    assert nll == pytest.approx(exact.item(), abs=1e-6)
    reached = own.out @ own.out.T + s2 * torch.eye(dims)
    torch.testing.assert_close(reached, model, rtol=0, atol=1e-4)
    torch.testing.assert_close(own.encode(images).std[0, :, 0, 0].sort().values.square(),
                               (s2 / values[-latent:]).sort().values, rtol=1e-3, atol=0)  # fmt: skip


def test_discriminator_and_generator_do_not_mix() -> None:
    torch.manual_seed(0)
    judge, x = PatchDiscriminator(1), torch.randn(2, 1, 16, 16, requires_grad=True)
    frozen_call(judge, x).mean().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    scale = balance((3 * weight).sum(), (weight**2).sum(), weight)
    torch.testing.assert_close(scale, torch.tensor(3 * 2**0.5 / 20**0.5), rtol=1e-5, atol=0)


def test_perceptual_without_lpips_is_one_line() -> None:
    with pytest.raises(ValueError, match="perceptual"):
        AutoencoderModule(lambda shape: KL(shape, **SMALL), torch.optim.AdamW, perceptual=1.0, shape=(1, 8, 8))


def test_psnr_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 28, 28, generator=generator, dtype=torch.float64)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    expected = torch.stack(
        [peak_signal_noise_ratio(y[None], x[None], data_range=1.0) for x, y in zip(a, b, strict=True)]
    )
    torch.testing.assert_close(psnr(2 * a - 1, 2 * b - 1), expected, rtol=1e-6, atol=0)


def test_every_own_autoencoder_is_an_autoencoder() -> None:
    make: Any
    for make in OWN:
        assert isinstance(make(), Autoencoder)
