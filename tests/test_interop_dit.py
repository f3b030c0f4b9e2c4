"""Checkpoints of DiT and SiT, against diffusers' DiTTransformer2DModel, which is another implementation of both."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from latents_folder import write_latents
from shell import Outcome, cli
from torch import Tensor, nn

from diffusion_pl.autoencoders import Orthogonal
from diffusion_pl.checkpoints.loading import load_model
from diffusion_pl.conditions import class_count
from diffusion_pl.data import Latents
from diffusion_pl.interop import dit
from diffusion_pl.interop.foreign import sketch
from diffusion_pl.interop.keys import take

diffusers = pytest.importorskip("diffusers")

CLASSES = 5
#: diffusers' layers by those of the files: of a block, and of the ends.
BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
EMBEDDERS = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}


def peer(side: int = 8, patch: int = 2, out: int = 8) -> Any:
    """Their network with random weights."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        **{"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "out_channels": out, "num_layers": 2},
        **{"sample_size": side, "patch_size": patch, "num_embeds_ada_norm": CLASSES},
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.1 * torch.randn_like(p))
        for block in model.transformer_blocks[1:]:  # of which the files have one
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # as in DiT's own code; diffusers' default is 1
    return model


def state_of(model: Any) -> dict[str, Tensor]:
    """Their weights under the names of the files."""
    theirs, state = model.state_dict(), {}

    def add(name: str, source: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{source}.{leaf}" in theirs:
                state[f"{name}.{leaf}"] = theirs[f"{source}.{leaf}"]

    for name, source in ENDS.items():
        add(name, source)
    for name, source in EMBEDDERS.items():
        add(name, f"transformer_blocks.0.norm1.emb.{source}")
    for k in range(2):
        for name, source in BLOCK.items():
            add(f"blocks.{k}.{name}", f"transformer_blocks.{k}.{source}")
        for leaf in ("weight", "bias"):
            parts = [theirs[f"transformer_blocks.{k}.attn1.to_{part}.{leaf}"] for part in "qkv"]
            state[f"blocks.{k}.attn.qkv.{leaf}"] = torch.cat(parts)
    return {**state, "pos_embed": model.pos_embed.pos_embed.reshape(1, -1, 32).float()}


def come_in(folder: Path, kind: str, *args: Any) -> Outcome:
    return cli(folder, "import", "--from", kind, "model.pt", "--output", "a.ckpt", "--heads", 4, *args)


@pytest.mark.parametrize(("patch", "out"), [(2, 8), (4, 4)])
def test_dit_denoises_as_theirs(tmp_path: Path, patch: int, out: int) -> None:
    theirs = peer(patch=patch, out=out)
    torch.save(state_of(theirs), tmp_path / "model.pt")
    done = come_in(tmp_path, "dit")
    assert done.code == 0, done.err
    assert "last of 6 label embeddings" in done.out
    model, data = load_model(tmp_path / "a.ckpt", "raw")
    assert (tuple(data.shape), class_count(data.conditions)) == ((4, 8, 8), CLASSES)
    x, i, label = torch.randn(3, 4, 8, 8), torch.tensor([0, 311, 999]), torch.tensor([4, 0, 2])
    with torch.no_grad():
        output = theirs(x, i, label).sample
        actual = model.denoiser(x, ((i + 1) / 1000).view(-1, 1, 1, 1), label=label)
        none = model.denoiser(x, ((i + 1) / 1000).view(-1, 1, 1, 1), label=torch.full((3,), -1))
        any_class = theirs(x, i, torch.full((3,), CLASSES)).sample
    atol = 1e-5 * output.abs().max().item()
    torch.testing.assert_close(actual.eps, output[:, :4], rtol=0, atol=atol)
    torch.testing.assert_close(none.eps, any_class[:, :4], rtol=0, atol=atol)
    if out == 8:
        assert actual.v is not None
        torch.testing.assert_close(actual.v, (output[:, 4:] + 1) / 2, rtol=0, atol=atol)
    else:
        assert actual.v is None
    pipe = model.live_pipeline().with_sampler(steps=2)
    assert pipe.samples(range(2)).x_0.shape == (2, 4, 8, 8)


def test_sit_has_their_velocity(tmp_path: Path) -> None:
    theirs = peer()
    torch.save(state_of(theirs), tmp_path / "model.pt")
    done = come_in(tmp_path, "sit")
    assert done.code == 0, done.err
    assert "linear path" in done.out
    model, _ = load_model(tmp_path / "a.ckpt", "raw")
    x, t, label = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.4, 0.95]), torch.tensor([4, 0, 2])
    with torch.no_grad():
        velocity = theirs(x, t, label).sample[:, :4]  # from noise at 0 to data at 1
        ours = model.denoiser(x, (1 - t).view(-1, 1, 1, 1), label=label)
    atol = 1e-5 * velocity.abs().max().item()
    torch.testing.assert_close(ours.x_0 - ours.eps, velocity, rtol=0, atol=atol)


def test_a_training_holds_raw_and_ema_weights(tmp_path: Path) -> None:
    state = state_of(peer())
    ema = {name: tensor if name == "pos_embed" else 2 * tensor for name, tensor in state.items()}
    content = {"model": state, "ema": ema, "opt": {}, "args": Namespace(model="DiT-XL/2")}
    torch.save(content, tmp_path / "model.pt")
    assert "--trust_pickle true" in come_in(tmp_path, "dit").error
    torch.save({**content, "args": {}}, tmp_path / "model.pt")
    done = come_in(tmp_path, "dit")
    assert done.code == 0, done.err
    (average, _), (raw, _) = load_model(tmp_path / "a.ckpt"), load_model(tmp_path / "a.ckpt", "raw")
    assert average.weights_name == "ema0.9999"
    biases = [model.network.state_dict()["output.bias"] for model in (average, raw)]
    assert torch.equal(biases[0], 2 * biases[1])


class Peer(nn.Module):
    """Names and shapes of DiT's file."""

    def __init__(self, width: int, depth: int, patch: int, out: int) -> None:
        super().__init__()

        def linear(inward: int, outward: int) -> nn.Module:
            return nn.Linear(inward, outward)

        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(4, width, patch, patch)})
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(linear(256, width), nn.SiLU(), linear(width, width))})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(1001, width)})
        self.pos_embed = nn.Parameter(torch.zeros(1, (32 // patch) ** 2, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn": nn.ModuleDict({"qkv": linear(width, 3 * width), "proj": linear(width, width)}),
                    "mlp": nn.ModuleDict({"fc1": linear(width, 4 * width), "fc2": linear(4 * width, width)}),
                    "adaLN_modulation": nn.Sequential(nn.SiLU(), linear(width, 6 * width)),
                }
            )
            for _ in range(depth)
        )
        modulation = nn.Sequential(nn.SiLU(), linear(width, 2 * width))
        self.final_layer = nn.ModuleDict({"linear": linear(width, patch**2 * out), "adaLN_modulation": modulation})


def test_the_published_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """DiT-XL/2, of 675,129,632 numbers, by names and shapes alone."""
    with torch.device("meta"):
        state = Peer(1152, 28, 2, 8).state_dict()
    monkeypatch.setattr(dit, "read_tensors", lambda *_: state)
    monkeypatch.setattr(dit, "tensors", lambda content, *_: content)
    monkeypatch.setattr(dit, "_check_positions", lambda *_: None)
    foreign = dit.read_dit(Path("DiT-XL-2-256x256.pt"))
    network = sketch(foreign)
    ours = take(foreign.raw, foreign.sources(network), network, "file")
    assert sum(tensor.numel() for tensor in state.values()) == 675_129_632
    assert sum(tensor.numel() for tensor in ours.values()) == 675_129_632 - 256 * 1152
    options = foreign.model["network"]["init_args"]
    assert (options["heads"], options["learned_variance"], foreign.shape) == (16, True, (4, 32, 32))


def test_latents_of_the_right_scale_give_images(tmp_path: Path) -> None:
    torch.save(state_of(peer()), tmp_path / "model.pt")
    write_latents(tmp_path / "right", Orthogonal((1, 8, 8), 2), scale=0.18215)
    write_latents(tmp_path / "wrong", Orthogonal((1, 8, 8), 2))
    error = come_in(tmp_path, "dit", "--data", "Latents", "--data.path", "right").error
    assert "data: Latents has (4, 4, 4) and 10 classes, the model (4, 8, 8) and 5" in error
    state = state_of(peer(side=4))
    table = state["y_embedder.embedding_table.weight"]
    torch.save({**state, "y_embedder.embedding_table.weight": torch.cat((table, table[:5]))}, tmp_path / "model.pt")
    error = come_in(tmp_path, "dit", "--data", "Latents", "--data.path", "wrong").error
    assert "latents that are multiplied by 0.18215. Fix: encode the images with `latents --scale 0.18215`" in error
    done = come_in(tmp_path, "dit", "--data", "Latents", "--data.path", "right")
    assert done.code == 0, done.err
    _, data = load_model(tmp_path / "a.ckpt")
    assert isinstance(data, Latents)
    assert data.units.mean.abs().max() == 0
    torch.testing.assert_close(data.units.std.flatten(), torch.full((4,), 1 / 0.18215, dtype=torch.float64))
    images = data.units.decode(torch.zeros(1, 4, 4, 4))
    assert images.shape == (1, 1, 8, 8)
    drawn = cli(tmp_path, "sample", "--ckpt_path", "a.ckpt", "--num_samples", 2, "--steps", 2, "--output", "images")
    assert drawn.code == 0, drawn.err
    assert [*(tmp_path / "images").glob("*.png")]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    state = state_of(peer())
    cases: list[tuple[dict[str, Any], tuple[Any, ...], str]] = [
        ({n: t for n, t in state.items() if n != "pos_embed"}, (), "pos_embed is missing: no DiT or SiT"),
        ({**state, "pos_embed": torch.zeros(1, 16, 32)}, (), "are not the fixed positions of DiT"),
        ({**state, "pos_embed": torch.zeros(1, 15, 32)}, (), "15 places"),
        ({**state, "extra": torch.zeros(2)}, (), "extra is unexpected"),
        ({**state, "final_layer.linear.weight": torch.zeros(12, 32)}, (), "4 channels in and 3 out"),
        ({**state, "blocks.0.attn.proj.bias": torch.zeros(2)}, (), "blocks.0.attn.proj.bias is 2, expected 32"),
        (state, ("--heads", 5), "32 channels cannot be divided into 5 heads"),
        (state, ("--size", 8), "--size is not for --from dit"),
    ]
    for content, args, message in cases:
        torch.save(content, tmp_path / "model.pt")
        error = come_in(tmp_path, "dit", *args).error
        assert message in error, error
    torch.save(state, tmp_path / "model.pt")
    error = cli(tmp_path, "import", "--from", "dit", "model.pt", "--output", "a.ckpt").error
    assert "does not show the number of attention heads: add --heads" in error
