"""MuonAdamW: its two halves, its state, and a run that is resumed."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from shell import tiny_data, tiny_module, tiny_trainer, weights
from torch import nn

from diffusion_pl.training import MuonAdamW


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 4), (8,), (2, 8), (3, 2, 3, 3), ()]
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def step(optimizer: torch.optim.Optimizer, made: list[nn.Parameter], times: int = 3) -> list[torch.Tensor]:
    for _ in range(times):
        optimizer.step()
    return [p.detach().clone() for p in made]


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    ours, theirs = parameters(), parameters()
    both: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.2}
    step(MuonAdamW(ours, **both, momentum=0.9, betas=(0.8, 0.95)), ours)
    step(torch.optim.Muon([theirs[0], theirs[2]], **both, momentum=0.9, adjust_lr_fn="match_rms_adamw"), theirs)
    step(torch.optim.AdamW([theirs[1], theirs[3], theirs[4]], **both, betas=(0.8, 0.95)), theirs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_updates_of_both_have_one_size() -> None:
    """The first of AdamW is the rate in every value; Muon's, of singular values 1, a fifth of it, nearly."""
    made = [nn.Parameter(torch.zeros(64, 32)), nn.Parameter(torch.zeros(64))]
    torch.manual_seed(0)
    for p in made:
        p.grad = torch.randn_like(p)
    step(MuonAdamW(made, lr=0.01), made, 1)
    assert made[1].abs().mean().item() == pytest.approx(0.01, rel=1e-3)
    assert made[0].square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.3)


def test_its_state_is_kept_and_rates_are_scheduled() -> None:
    made, resumed = parameters(), parameters()
    optimizer = MuonAdamW(made)
    step(optimizer, made, 2)
    again = MuonAdamW(resumed)
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(resumed, made, strict=True):
            p.copy_(q)
    for each in (optimizer, again):
        for group in each.param_groups:
            group["lr"] = 0.5
    torch.testing.assert_close(step(optimizer, made), step(again, resumed), rtol=0, atol=0)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Any) -> None:
    def run(steps: int, path: str | None = None) -> Any:
        module = tiny_module(optimizer=partial(MuonAdamW, lr=0.01))
        keep = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=5, save_top_k=-1)
        trainer = tiny_trainer(tmp_path, keep, max_steps=steps, gradient_clip_val=1.0)
        trainer.fit(module, datamodule=tiny_data(), ckpt_path=path)
        return module

    whole = run(10)
    half = next(tmp_path.glob("half*.ckpt"))
    resumed = run(10, str(half))
    torch.testing.assert_close(weights(whole), weights(resumed), rtol=0, atol=0)


def test_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="MuonAdamW: expected parameters, got groups"):
        MuonAdamW([{"params": parameters()}])  # type: ignore[list-item]
    only = MuonAdamW([nn.Parameter(torch.zeros(3))])
    assert len(only.param_groups) == 1
