"""Flow maps in training: networks, what is learned, resuming, warm starts, two processes."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flow_maps import smooth_mixture
from lightning.pytorch.callbacks import ModelCheckpoint
from shell import checkpoint, cli, fit, tiny_config, tiny_data, tiny_module, tiny_trainer
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from diffusion_pl.checkpoints.warm_start import WarmStart
from diffusion_pl.denoisers import ExactMap, NetworkDenoiser, V, Velocity
from diffusion_pl.losses import (
    Consistency,
    ContinuousConsistency,
    FlowMapLoss,
    ImprovedMeanFlow,
    Lagrangian,
    MeanFlow,
    PairSampler,
    Rule,
    Semigroup,
    ToData,
    TwoTimes,
    UniformTimes,
)
from diffusion_pl.networks import MLP, DiT, NCSNpp, UNet
from diffusion_pl.samplers import DDIM, UniformGrid
from diffusion_pl.schedules import VP, Cosine, Rectified

SMALL: dict[str, Callable[..., Any]] = {
    "MLP": partial(MLP, (2,), width=8, depth=1),
    "DiT": partial(DiT, (1, 8, 8), patch_size=4, width=16, depth=1, heads=2),
    "UNet": partial(UNet, (1, 8, 8), nf=8, ch_mult=(1, 2), num_res_blocks=1, groups=4, attn_resolutions=()),
    "NCSNpp": partial(NCSNpp, (1, 8, 8), nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=()),
}


# Networks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_a_network_with_jumps_starts_as_the_one_without(name: str) -> None:
    """The same weights and output at each jump, which the network does use: its last layer is at zero."""
    torch.manual_seed(0)
    plain = SMALL[name]().eval()
    jumping = SMALL[name](flow_map=True).eval()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1 * torch.randn_like(p))
    missing, unexpected = jumping.load_state_dict(plain.state_dict(), strict=False)
    assert missing and all(key.startswith("jump.") for key in missing)
    assert not unexpected
    x = torch.randn(4, *((2,) if name == "MLP" else (1, 8, 8)))
    c_noise, jump = torch.rand(4), torch.tensor([0.0, 0.2, 0.5, 1.0])
    expected = plain(x, c_noise)
    assert torch.equal(jumping(x, c_noise, jump=jump), expected)
    assert torch.equal(jumping(x, c_noise), expected)
    with torch.no_grad():
        jumping.jump.output.weight.normal_()
    assert not torch.allclose(jumping(x, c_noise, jump=jump), expected)
    with pytest.raises(ValueError, match="set flow_map to true"):
        plain(x, c_noise, jump=jump)


# What is learned ----------------------------------------------------------------------------------------------------


def train(rule: Rule, pairs: PairSampler, steps: int, schedule: Any, width: int = 64) -> NetworkDenoiser:
    """A flow map of the mixture, learned with its denoiser as the teacher."""
    torch.manual_seed(0)
    network, oracle = MLP((2,), width=width, depth=2, flow_map=True), smooth_mixture(schedule)
    teacher = type(oracle)(schedule, oracle.means.float(), oracle.var.sqrt().float(), [0.5, 0.3, 0.2])
    parameterization = Velocity() if isinstance(schedule, Rectified) else V()
    denoiser, loss = NetworkDenoiser(network, schedule, parameterization), FlowMapLoss(rule, pairs, teacher=teacher)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5 + 0.5 * math.cos(math.pi * n / steps))
    for _ in range(steps):
        which = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 256, replacement=True)
        x_0 = teacher.means[which] + teacher.var.sqrt()[which, None] * torch.randn(256, 2)
        optimizer.zero_grad()
        loss(denoiser, x_0).loss.mean().backward()
        optimizer.step()
        decay.step()
    return denoiser.eval()


@torch.no_grad()
def error(denoiser: NetworkDenoiser, t: float, r: float) -> float:
    """Root mean square of the jumps' ends, against the ODE's: 2,000 starts of the marginal at t = 1."""
    schedule = denoiser.schedule
    x_t = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5))
    start, end = torch.tensor(t), torch.tensor(r)
    x_0, eps, _ = denoiser(x_t, start, r=end)
    kernel = schedule(end)
    ends = ExactMap(smooth_mixture(schedule), 1e-6).end(x_t.double(), start, end)
    return float((kernel.alpha * x_0 + kernel.sigma * eps - ends).square().sum(1).mean().sqrt())


def test_a_small_network_learns_the_map() -> None:
    """One jump from noise to data, where the samples are 1.1 from their mean."""
    denoiser = train(Lagrangian(), TwoTimes(UniformTimes(1e-3), 0.5), 250, Rectified(), width=48)
    assert error(denoiser, 1.0, 0.0) < 0.2
    assert error(denoiser, 1.0, 0.5) < 0.15
    long, short = (difference(denoiser, 0.6, 0.6 - length) / length for length in (0.2, 0.025))
    assert short < 0.5 * long


@torch.no_grad()
def difference(denoiser: NetworkDenoiser, t: float, r: float) -> float:
    """Root mean square distance between one jump and 20 steps of the learned denoiser, r = t."""
    times = torch.linspace(t, r, 21)
    x = 0.8 * torch.randn(500, 2, generator=torch.Generator().manual_seed(6))
    x_0, eps, _ = denoiser(x, times[0], r=times[-1])
    end = denoiser.schedule(times[-1])
    jumped = end.alpha * x_0 + end.sigma * eps
    for now, after in pairwise(times.unbind()):
        x_0, eps, _ = denoiser(x, now)
        x = denoiser.schedule(after).alpha * x_0 + denoiser.schedule(after).sigma * eps
    return float((jumped - x).square().sum(1).mean().sqrt())


RULES: list[tuple[Rule, bool, int]] = [
    (MeanFlow(), False, 2000),
    (ImprovedMeanFlow(), False, 2000),
    (Lagrangian(), False, 2000),
    (Semigroup(), False, 2000),
    (ContinuousConsistency(warmup=200), True, 3000),
    (Consistency(every=400, stages=6), True, 3000),
]
NAMES = [f"{type(rule).__name__}-{k}" for k, (rule, *_) in enumerate(RULES)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "to_data", "steps"), RULES, ids=[f"{type(r).__name__}-{k}" for k, (r, *_) in enumerate(RULES)]
)
def test_each_rule_learns_the_map(rule: Rule, to_data: bool, steps: int) -> None:
    times = UniformTimes(1e-3)
    pairs = ToData(times) if to_data else TwoTimes(times, 0.25)
    denoiser = train(rule, pairs, steps, Cosine() if to_data else Rectified(), width=96)
    assert error(denoiser, 1.0, 0.0) < 0.25


@pytest.mark.slow
def test_halves_of_an_ordinary_teacher_are_its_steps() -> None:
    """Its two halves are steps of DDIM, whose end the jump learns, and not that of the ODE."""
    denoiser = train(Semigroup("teacher"), TwoTimes(UniformTimes(1e-3), 0.25), 2000, Rectified(), width=96)
    x_t = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        two, one = (
            DDIM(UniformGrid(2))(smooth_mixture(Rectified()), x_t.double()).x_0,
            DDIM(UniformGrid(1))(denoiser, x_t),
        )
    assert float((one.x_0 - two).square().sum(1).mean().sqrt()) < 0.15
    assert error(denoiser, 1.0, 0.0) > 0.3


# Training by Lightning ----------------------------------------------------------------------------------------------


def flow_module(rule: Rule | None = None, **options: Any) -> Any:
    network = partial(MLP, width=16, depth=1, flow_map=True)
    return tiny_module(network=network, loss=FlowMapLoss(rule or MeanFlow(), TwoTimes(UniformTimes())), **options)


def test_a_resumed_run_is_bitwise_the_same(tmp_path: Path) -> None:
    """Warm-up and its count of batches too; an epoch has 20 batches."""
    whole, saver = (
        flow_module(ContinuousConsistency(10)),
        ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1),
    )
    tiny_trainer(tmp_path, saver, max_steps=9, enable_checkpointing=True).fit(whole, datamodule=tiny_data())
    part = flow_module(ContinuousConsistency(10))
    torch.manual_seed(99)
    tiny_trainer(tmp_path, max_steps=9).fit(part, datamodule=tiny_data(), ckpt_path=tmp_path / "step=5.ckpt")
    assert int(part.loss.batches) == 9
    ours, theirs = part.state_dict(), whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_averaged_targets_need_averages(tmp_path: Path) -> None:
    module = tiny_module(
        network=partial(MLP, width=16, depth=1, flow_map=True),
        loss=FlowMapLoss(MeanFlow(), TwoTimes(UniformTimes()), averaged_target=True),
    )
    with pytest.raises(ValueError, match="averaged_target needs EMA weights"):
        tiny_trainer(tmp_path, max_steps=1).fit(module, datamodule=tiny_data())


def test_a_diffusion_model_is_the_start_of_a_flow_map(tmp_path: Path) -> None:
    """Its output is unchanged at every r; a tensor of another shape is still refused."""
    plain = tiny_module(network=partial(MLP, width=16, depth=1))
    trainer = tiny_trainer(tmp_path, max_steps=2)
    trainer.fit(plain, datamodule=tiny_data())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    module = flow_module()
    taken = WarmStart(tmp_path / "plain.ckpt", "raw").load(module)
    assert all(name.startswith(("jump.", "loss.")) for name in taken["skipped"])
    x, t = torch.randn(5, 2), torch.tensor(0.7)
    expected = plain.denoiser(x, t)
    for r in (0.0, 0.3, 0.7):
        ours = module.denoiser(x, t, r=torch.tensor(r))
        assert torch.equal(ours.x_0, expected.x_0)
        assert torch.equal(ours.eps, expected.eps)
    wider = tiny_module(network=partial(MLP, width=24, depth=1, flow_map=True))
    with pytest.raises(ValueError, match="does not fit the new model"):
        WarmStart(tmp_path / "plain.ckpt", "raw").load(wider)


# Several processes, compilation --------------------------------------------------------------------------------------


class Bare(nn.Module):
    """The whole loss as a module, so that DistributedDataParallel wraps it as Lightning's strategy does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        network = MLP((2,), width=8, depth=1, flow_map=True)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.1 * torch.randn_like(p))
        self.denoiser = NetworkDenoiser(network, VP(), V())

    def forward(self, x_0: Tensor, t: Tensor, r: Tensor, eps: Tensor) -> Tensor:
        from flow_maps import At, Given

        loss: Tensor = FlowMapLoss(MeanFlow(), At(t, r), coupling=Given(eps))(self.denoiser, x_0).loss
        return loss.mean()


def worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    wrapped = nn.parallel.DistributedDataParallel(Bare())
    loss_on(wrapped, rank, 2).backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in wrapped.named_parameters()}
    torch.save(gradients, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def loss_on(model: nn.Module, rank: int, processes: int) -> Tensor:
    t, r, x_0, eps = torch.rand(4, 8, 2, generator=torch.Generator().manual_seed(0))
    part = slice(rank * 8 // processes, (rank + 1) * 8 // processes)
    loss: Tensor = model(x_0[part], torch.maximum(t, r)[part, 0], torch.minimum(t, r)[part, 0], eps[part])
    return loss


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    spawn(worker, (str(tmp_path),), nprocs=2)
    alone = Bare()
    loss_on(alone, 0, 1).backward()
    for rank in (0, 1):
        gradients = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, p in alone.named_parameters():
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_compiled_network_has_the_same_gradients() -> None:
    plain, compiled = Bare(), Bare()
    compiled.denoiser.network.compile()
    for model in (plain, compiled):
        loss_on(model, 0, 1).backward()
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6)


# At the command line ------------------------------------------------------------------------------------------------


MEAN_FLOW = {
    "class_path": "FlowMapLoss",
    "init_args": {
        "rule": {"class_path": "MeanFlow"},
        "pairs": {"class_path": "TwoTimes", "init_args": {"times": {"class_path": "UniformTimes"}}},
    },
}
JUMPING = {"class_path": "diffusion_pl.networks.MLP", "init_args": {"width": 16, "depth": 1, "flow_map": True}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__loss": MEAN_FLOW}, "MLP has no input for the length of a jump"),
        (
            {
                "model__loss": MEAN_FLOW,
                "model__network": JUMPING,
                "model__schedule": {"class_path": "Rectified"},
                "model__parameterization": {"class_path": "Epsilon"},
            },
            "Epsilon cannot jump from t = 1",
        ),
    ],
    ids=["network", "parameterization"],
)
def test_an_unsuitable_model_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = tiny_config(tmp_path, **changes)
    error = cli(tmp_path, "fit", "--config", config, "--run", "no", "--trainer.max_steps", 1).error
    assert message in error
    assert "Fix: " in error


def test_fit_makes_a_flow_map(tmp_path: Path) -> None:
    run = fit(tmp_path, model__loss=MEAN_FLOW, model__network=JUMPING, trainer__max_steps=2)
    content = checkpoint(run)
    assert int(content["state_dict"]["loss.batches"]) == 2
    assert "denoiser.network.jump.output.weight" in content["state_dict"]
