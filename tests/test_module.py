"""DiffusionModule: its loss, its validation, what it logs, its samples."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import by_class
from lightning.pytorch import Callback, LightningModule, Trainer
from shell import MEASURED, fit, scalars, shared_keys, tiny_data, tiny_module, tiny_trainer, weights
from torch import Tensor

from diffusion_pl.callbacks.sample_writer import Drawer, draw
from diffusion_pl.checkpoints.io import read_part
from diffusion_pl.data import Moons, Table
from diffusion_pl.denoisers import Denoiser, Prediction
from diffusion_pl.samplers import DDIM, UniformGrid
from diffusion_pl.tensors import mix
from diffusion_pl.training import WarmupCosine

BINS = ["t0.00-0.25", "t0.25-0.50", "t0.50-0.75", "t0.75-1.00"]


def v_losses(network: torch.nn.Module, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """‖F − v‖² of the variance-preserving schedule with β from 0.1 to 20, by hand: (B,)."""
    log_alpha = -0.25 * t**2 * 19.9 - 0.05 * t
    alpha, sigma = torch.exp(log_alpha)[:, None], torch.sqrt(-torch.expm1(2 * log_alpha))[:, None]
    v = alpha * eps - sigma * x_0
    error: Tensor = network(alpha * x_0 + sigma * eps, t) - v
    return error.square().mean(1)


class OneStep(Callback):
    """Keeps what goes into a step and comes out, and draws what it drew once more."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.x, self.batch = batch["x"].clone(), batch_idx

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        pl_module.draw_step(self.batch)
        t, eps = 1e-5 + (1 - 1e-5) * torch.rand(len(self.x)), torch.randn(self.x.shape)
        self.loss, self.by_hand = loss.item(), v_losses(pl_module.network, self.x, t, eps).mean().item()


def test_the_training_loss_is_the_one_computed_by_hand(tmp_path: Path) -> None:
    step = OneStep()
    tiny_trainer(tmp_path, step, max_steps=3).fit(tiny_module(), datamodule=tiny_data())
    assert step.loss == pytest.approx(step.by_hand, rel=1e-5)
    assert 0.2 < step.loss < 5


def test_validation_metrics_do_not_depend_on_earlier_draws(tmp_path: Path) -> None:
    module, data, trainer = tiny_module(), tiny_data(), tiny_trainer(tmp_path)
    first = trainer.validate(module, datamodule=data, verbose=False)[0]
    torch.manual_seed(123)
    torch.randn(5)
    assert trainer.validate(module, datamodule=data, verbose=False)[0] == first
    assert set(first) == {"val_loss/raw", *(f"val_loss/raw_{span}" for span in BINS)}


def test_validation_is_the_mean_over_examples_in_total_and_bins(tmp_path: Path) -> None:
    module, data = tiny_module(), tiny_data()
    logged = tiny_trainer(tmp_path).validate(module, datamodule=data, verbose=False)[0]
    losses, times = [], []
    for index, batch in enumerate(data.val_dataloader()):
        generator = torch.Generator().manual_seed(mix(index))
        t = 1e-5 + (1 - 1e-5) * torch.rand(len(batch["x"]), generator=generator)
        eps = torch.randn(batch["x"].shape, generator=generator)
        losses.append(v_losses(module.network, batch["x"], t, eps).detach())
        times.append(t)
    loss, t = torch.cat(losses), torch.cat(times)
    assert len(loss) == 14 * 5
    assert logged["val_loss/raw"] == pytest.approx(loss.mean().item(), rel=1e-5)
    for k, span in enumerate(BINS):
        inside = (t >= k / 4) & (t < (k + 1) / 4)
        assert logged[f"val_loss/raw_{span}"] == pytest.approx(loss[inside].mean().item(), rel=1e-5)


def test_logs_say_which_weights_they_are_of(tmp_path: Path) -> None:
    logged = scalars(fit(tmp_path))
    expected = {
        "val_loss/ema0.999",
        *(f"val_loss/ema0.999_{span}" for span in BINS),
        "train_loss/raw",
        "learning_rate",
        *MEASURED,
    }
    assert expected <= set(logged)
    assert not shared_keys(list(logged), "val_loss/raw")
    # A scalar of the n-th step is logged at n − 1.
    assert [step for step, _ in logged["train_loss/raw"]] == [10, 20, 30, 40]
    assert [step for step, _ in logged["val_loss/ema0.999"]] == [20, 40]
    assert [value for _, value in logged["learning_rate"]] == pytest.approx([0.01] * 4)


def test_without_averages_the_logs_say_raw(tmp_path: Path) -> None:
    logged = scalars(fit(tmp_path, "--ema.decays", "[]"))
    assert "val_loss/raw" in logged
    assert not shared_keys(list(logged), "val_loss/ema")


def test_the_logged_learning_rate_is_the_schedulers(tmp_path: Path) -> None:
    schedule = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 20}}
    logged = scalars(fit(tmp_path, model__lr_scheduler=schedule))["learning_rate"]
    # After a warm-up of 20 of 40 steps half a cosine; step n runs at the rate of n − 1.
    expected = [0.01 * 10 / 20, 0.01, *(0.01 * 0.5 * (1 + math.cos(math.pi * n / 20)) for n in (9, 19))]
    assert [value for _, value in logged] == pytest.approx(expected, rel=1e-5)


def test_accumulation_counts_optimizer_steps_in_the_schedule(tmp_path: Path) -> None:
    totals = []

    def scheduler(optimizer: torch.optim.Optimizer, total_steps: int) -> WarmupCosine:
        totals.append(total_steps)
        return WarmupCosine(optimizer, total_steps, warmup_steps=0)

    module = tiny_module(lr_scheduler=scheduler)
    trainer = tiny_trainer(tmp_path, max_steps=6, accumulate_grad_batches=3)
    trainer.fit(module, datamodule=tiny_data())
    assert totals == [6]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_only_the_network_is_trained(tmp_path: Path) -> None:
    module = tiny_module()
    trainer = tiny_trainer(tmp_path, max_steps=1)
    trainer.fit(module, datamodule=tiny_data())
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in module.network.parameters()}


def test_a_tiny_model_learns(tmp_path: Path) -> None:
    """Points on a diagonal: one direction of which little can be known, and one without any spread."""
    (tmp_path / "line.csv").write_text("x,y\n" + "".join(f"{i},{i}\n" for i in range(100)))
    data = Table(str(tmp_path / "line.csv"), ["x", "y"], batch_size=90, repeats=10)
    module, trainer = tiny_module(width=64), tiny_trainer(tmp_path, max_steps=300)
    before = trainer.validate(module, datamodule=data, verbose=False)[0]["val_loss/raw"]
    trainer.fit(module, datamodule=data)
    after = trainer.validate(module, datamodule=data, verbose=False)[0]["val_loss/raw"]
    assert after < 0.9 * before
    pipeline = module.live_pipeline().with_sampler(DDIM(UniformGrid(20)))
    samples = pipeline.samples(range(500)).x_0 @ torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    along, across = (samples / 2**0.5).std(0).tolist()
    assert 1 < along < 1.8  # √2
    assert across < 0.3


def test_a_sample_depends_on_seed_and_index_only() -> None:
    """Up to rounding: a matrix product of another size adds up in another order."""
    pipeline = tiny_module().live_pipeline()
    together = pipeline.samples(range(6)).x_0
    torch.testing.assert_close(pipeline.samples([4]).x_0, together[4:5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pipeline.samples([5, 0]).x_0, together[[5, 0]], rtol=1e-5, atol=1e-5)
    assert torch.equal(pipeline.samples(range(6)).x_0, together)
    assert not torch.isclose(pipeline.with_seed(1).samples(range(6)).x_0, together).any()
    assert len(together.unique(dim=0)) == 6


def test_samples_are_drawn_with_the_guidance_around_the_denoiser() -> None:
    class Nothing(Denoiser):
        """Knows that there are no data."""

        def __init__(self, denoiser: Denoiser) -> None:
            super().__init__()
            self.schedule = denoiser.schedule

        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
            return Prediction(torch.zeros_like(x_t), x_t / self.schedule(t).sigma)

    assert tiny_module().live_pipeline().samples(range(3)).x_0.abs().min() > 0
    assert torch.equal(tiny_module(guidance=Nothing).live_pipeline().samples(range(3)).x_0, torch.zeros(3, 2))


def test_prediction_hands_out_samples_by_index(tmp_path: Path) -> None:
    pipeline = tiny_module().live_pipeline().with_seed(3)
    assert pipeline.block == 256
    assert draw(Drawer(pipeline), 600, tmp_path, tiny_trainer(tmp_path), batch=256)
    parts = [read_part(path) for path in sorted(tmp_path.glob("*.pt"))]
    assert [part["index"].tolist() for part in parts] == [list(range(k, k + 256)) for k in (0, 256, 512)]
    whole = pipeline.samples(range(768)).x_0
    torch.testing.assert_close(torch.cat([part["x"] for part in parts]), whole, rtol=1e-5, atol=1e-5)
    assert parts[0]["nfe"] == 4


def test_blocks_are_as_large_as_the_device_asks_for(tmp_path: Path) -> None:
    """Lightning moves the drawer to a GPU, where blocks are larger, only after `draw` was called."""

    class Moved(Drawer):
        @property
        def block(self) -> int:
            return 16 if self._trainer is None else 64

    assert draw(Moved(tiny_module().live_pipeline()), 100, tmp_path, tiny_trainer(tmp_path), batch=64)
    parts = [read_part(path) for path in sorted(tmp_path.glob("*.pt"))]
    assert [part["block"].tolist() for part in parts] == [[0], [1]]
    assert sum(len(part["x"]) for part in parts) == 128


def test_labels_reach_the_network(tmp_path: Path) -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)
    module, data = tiny_module(conditions=by_class(2), optimizer=sgd), Moons(batch_size=64, conditional=True)
    assert data.conditions == by_class(2)
    before = weights(module)["label.table.weight"]
    tiny_trainer(tmp_path, max_steps=2).fit(module, datamodule=data)
    moved = (weights(module)["label.table.weight"] != before).any(1)
    assert moved.tolist() == [True, True, False]  # the last stands for "any class", which nobody asked for


def test_weights_of_another_network_are_refused() -> None:
    theirs = {"state_dict": tiny_module(width=8).state_dict()}
    with pytest.raises(ValueError, match=r"another network: .*bias is 8 in the checkpoint, 16 here \(and 4 more\)"):
        tiny_module().on_load_checkpoint(theirs)
    del theirs["state_dict"]["denoiser.network.output.bias"]
    with pytest.raises(ValueError, match=r"output.bias is absent in the checkpoint, 2 here"):
        tiny_module(width=8).on_load_checkpoint(theirs)
    tiny_module().on_load_checkpoint({"state_dict": tiny_module().state_dict()})


def test_compilation_leaves_the_names_of_the_weights_alone() -> None:
    assert tiny_module(compile=True).state_dict().keys() == tiny_module().state_dict().keys()


def test_compile_mode_is_passed_on_and_unknown_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    tiny_module(compile="reduce-overhead")
    tiny_module(compile=True)
    assert asked == [{"mode": "reduce-overhead"}, {"mode": None}]
    with pytest.raises(ValueError, match=r"model\.compile must be true, false or one of .*max-autotune, got fast"):
        tiny_module(compile="fast")
