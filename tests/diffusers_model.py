"""Tiny pipelines of the package diffusers."""

from pathlib import Path
from typing import Any

import diffusers
import torch

from diffusion_pl.checkpoints.loading import from_content
from diffusion_pl.interop.diffusers import read
from diffusion_pl.interop.foreign import default_data, to_checkpoint
from diffusion_pl.training import DiffusionModule

#: Ho et al.'s wiring, as in the published CIFAR-10 model, but narrow.
HO: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def shaken(network: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return network.eval()


def pipeline(folder: Path, scheduler: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    unet = shaken(diffusers.UNet2DModel(**(HO | options)))
    made = diffusers.DDPMPipeline(unet, scheduler or diffusers.DDPMScheduler())
    made.save_pretrained(folder / "pipe")
    return made


def bring_in(pipe: Any, folder: Path) -> tuple[DiffusionModule, tuple[str, ...]]:
    """The model of folder/pipe, where the pipeline is saved before if one is given, and what was said of it."""
    path = folder / "pipe"
    if pipe is not None:
        pipe.save_pretrained(path)
    foreign = read(path)
    content = to_checkpoint(foreign, default_data(foreign), path, "diffusers")
    model, _ = from_content(content, path, "ema")
    assert isinstance(model, DiffusionModule)
    return model, foreign.notes
