"""The loader's order, its shares over processes, and exact resume through Lightning."""

import logging
import warnings
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from diffusion_pl.data import Datasaurus, Loader
from diffusion_pl.data.loader import Subset


def loader(n: int = 10, batch_size: int = 4, **options: Any) -> Loader:
    return Loader({"x": torch.arange(n)}, batch_size, **options)


def epoch(batches: Loader) -> list[list[int]]:
    return [batch["x"].tolist() for batch in batches]


def flat(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def test_evaluation_walks_over_the_data_in_order() -> None:
    assert epoch(loader()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert epoch(loader(drop_last=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert epoch(loader(3, repeats=2)) == [[0, 1, 2, 0], [1, 2]]


def test_the_tensors_stay_aligned() -> None:
    tensors = {"x": torch.randn(50, 2, 3), "label": torch.arange(50)}
    for batch in Loader(tensors, 7, shuffle=True):
        assert torch.equal(batch["x"], tensors["x"][batch["label"]])


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    batches = loader(100, shuffle=True, seed=3)
    epochs = [epoch(batches) for _ in range(3)]
    assert all(sorted(flat(batch)) == list(range(100)) for batch in epochs)
    torch.manual_seed(12345)
    for number in (2, 0, 1):
        other = loader(100, shuffle=True, seed=3)
        other.set_epoch(number)
        assert epoch(other) == epochs[number]
        assert batches.order(number).tolist() == flat(epochs[number])
    orders = {tuple(loader(100, shuffle=True, seed=i).order(j).tolist()) for i in range(4) for j in range(4)}
    assert len(orders) == 16


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    epoch(loader(100, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_repeats_are_shuffled_together() -> None:
    order = loader(10, shuffle=True, repeats=30).order(0)
    assert order.bincount().tolist() == [30] * 10
    assert len(set(order[:10].tolist())) < 10  # 30 separate permutations would begin with all ten


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_training_batches_of_one_process(world_size: int) -> None:
    alone = epoch(loader(25, 6, shuffle=True, repeats=3))
    shares = [
        epoch(loader(25, 6, shuffle=True, repeats=3, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    for number, batch in enumerate(alone):
        parts = [share[number] for share in shares]
        assert all(parts)
        assert sorted(flat(parts)) == sorted(batch)
        assert [parts[i % world_size][i // world_size] for i in range(len(batch))] == batch
    assert [len(share) for share in shares] == [len(alone)] * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_distributes_complete_batches(world_size: int) -> None:
    alone = epoch(loader(25, 6))
    shares = [epoch(loader(25, 6, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert [shares[k % world_size][k // world_size] for k in range(len(alone))] == alone
    # A process without a share takes part with nothing.
    assert [share for share in shares[len(alone) :]] == [[[]]] * max(0, world_size - len(alone))


@pytest.mark.parametrize("n", range(1, 14))
def test_evaluation_on_four_processes_sees_each_example_once(n: int) -> None:
    loaders = [loader(n, 3, rank=rank, world_size=4) for rank in range(4)]
    shares = [epoch(share) for share in loaders]
    assert sorted(flat(flat(shares))) == list(range(n))
    assert [len(share) for share in loaders] == [len(share) for share in shares]
    assert all(shares)


@pytest.mark.parametrize("n", range(4, 18))
def test_training_on_four_processes_has_equally_many_batches(n: int) -> None:
    shares = [epoch(loader(n, 8, shuffle=True, rank=rank, world_size=4)) for rank in range(4)]
    assert len({len(share) for share in shares}) == 1
    assert all(batch for share in shares for batch in share)
    seen = flat(flat(shares))
    assert len(seen) == len(set(seen)) >= n - 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size = 2\), got 2"),
        ({"n": 3, "shuffle": True, "world_size": 4}, "3 examples times 1 repeats make no batch of 4 for 4"),
        ({"batch_size": 8, "shuffle": True, "world_size": 3}, "batch_size 8 .* by 3 processes: .* such as 6 or 9"),
        ({"n": 3, "shuffle": True, "drop_last": True}, "lower batch_size or raise repeats"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(**options)


def test_tensors_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal length, got lengths \{'x': 3, 'label': 4\}"):
        Loader({"x": torch.zeros(3), "label": torch.zeros(4)}, 2)


def test_the_stream_resumes_independent_of_trainer_epochs() -> None:
    whole = loader(20, shuffle=True)
    stream = flat(epoch(whole) for _ in range(4))

    batches = loader(20, shuffle=True)
    taken = []
    for number, count in ((0, 5), (1, 0), (2, 1), (3, 5), (4, 3)):  # an empty epoch, a short one, one that straddles
        batches.set_epoch(number)
        iterator = iter(batches)
        taken += [next(iterator)["x"].tolist() for _ in range(count)]
    assert taken == stream[:14]
    state = batches.state_dict()

    resumed = loader(20, shuffle=True)
    lazy = iter(resumed)  # Lightning makes its iterator before it loads the state
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(5)
    assert [batch["x"].tolist() for batch in lazy] == stream[14:19]


def test_evaluation_restarts_after_an_interrupted_iteration() -> None:
    batches = loader(20)
    next(iter(batches))
    batches.set_epoch(3)
    assert epoch(batches) == epoch(loader(20))


class Recorder(LightningModule):
    """Writes down every batch it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        self.seen.append(batch["x"].tolist())
        return self.weight * batch["x"].float().mean()

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnce(Callback):
    """Writes one checkpoint, at the first call of the named hook at or after a number of steps."""

    def __init__(self, path: Path, hook: str, step: int) -> None:
        self.path = path
        self.step = step
        setattr(self, hook, self.save)

    def save(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def fit(
    path: Path, callbacks: list[Callback], ckpt_path: Path | None = None, val: bool = True, **options: Any
) -> Recorder:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=callbacks,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dataloader is not resumable.*")
        trainer.fit(module, loader(26, shuffle=True, seed=5), loader(6) if val else None, ckpt_path=ckpt_path)
    return module


STEPS = {"max_steps": 25, "max_epochs": -1}
EPOCHS = {"max_epochs": 4}


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize(
    ("hook", "step", "options"),
    [
        ("on_train_batch_end", 10, STEPS),  # in the middle of the second epoch of seven batches
        ("on_train_batch_end", 10, EPOCHS),
        ("on_train_batch_end", 14, STEPS),  # after the last batch of an epoch
        ("on_train_batch_end", 14, EPOCHS),
        ("on_train_epoch_end", 14, STEPS),
        ("on_train_epoch_end", 14, EPOCHS),
        ("on_train_batch_end", 3, STEPS | {"accumulate_grad_batches": 2}),
        ("on_train_batch_end", 10, STEPS | {"limit_train_batches": 4}),
        ("on_train_epoch_end", 12, STEPS | {"limit_train_batches": 4}),
    ],
)
def test_a_resumed_run_sees_the_batches_of_the_uninterrupted_one(
    tmp_path: Path, hook: str, step: int, options: dict[str, Any], val: bool
) -> None:
    check_resume(tmp_path, SaveOnce(tmp_path / "resume.ckpt", hook, step), options, options, val)


@pytest.mark.parametrize("interval", [{}, {"val_check_interval": 3}])
def test_a_run_resumed_from_after_a_validation_is_exact(tmp_path: Path, interval: dict[str, Any]) -> None:
    check_resume(
        tmp_path, SaveOnce(tmp_path / "resume.ckpt", "on_validation_end", 10), STEPS | interval, STEPS | interval
    )


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize("steps", [10, 14])
def test_a_finished_run_can_be_prolonged(tmp_path: Path, steps: int, val: bool) -> None:
    shorter = STEPS | {"max_steps": steps}
    check_resume(tmp_path, SaveOnce(tmp_path / "resume.ckpt", "on_train_end", steps), shorter, STEPS, val)


def check_resume(path: Path, save: SaveOnce, first: dict[str, Any], resumed: dict[str, Any], val: bool = True) -> None:
    """Save in a run with the options ``first``, resume with ``resumed``; compare with a run that never stopped."""
    fit(path, [save], val=val, **first)
    whole = fit(path, [], val=val, **resumed)
    progress = torch.load(save.path, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    done = progress["total"]["processed"]
    assert 0 < done < len(whole.seen)
    rest = fit(path, [], ckpt_path=save.path, val=val, **resumed)
    assert rest.seen == whole.seen[done:]


def test_the_epochs_of_a_run_differ(tmp_path: Path) -> None:
    seen = fit(tmp_path, [], max_steps=21, max_epochs=-1).seen
    epochs = [seen[0:7], seen[7:14], seen[14:21]]
    assert all(sorted(flat(batches)) == list(range(26)) for batches in epochs)
    assert len({str(batches) for batches in epochs}) == 3


def test_overfitting_sees_the_same_batches_in_each_epoch(tmp_path: Path) -> None:
    class Points(Recorder):
        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            self.seen.append(batch["x"].tolist())
            return self.weight * batch["x"].sum()

    module = Points()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        overfit_batches=2,
        max_epochs=2,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*requested to overfit.*")
        trainer.fit(module, datamodule=Datasaurus(batch_size=16))
    assert len(module.seen) == 4
    assert module.seen[:2] == module.seen[2:]


class Squares:
    """A source that is not tensors in memory, and remembers the batches asked of it."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices: Tensor) -> dict[str, Tensor]:
        self.asked.append(indices.tolist())
        return {"x": indices.square()}


class Draws:
    """Keeps the numbers that an augmentation is given."""

    draws = 2
    tells: tuple[str, ...] = ()

    def __call__(self, batch: dict[str, Tensor], u: Tensor) -> dict[str, Tensor]:
        return {**batch, "u": u}


def test_a_source_is_asked_once_for_each_batch() -> None:
    source = Squares(10)
    assert [batch["x"].tolist() for batch in Loader(source, 4)] == [[0, 1, 4, 9], [16, 25, 36, 49], [64, 81]]
    assert source.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_subset_counts_for_itself() -> None:
    subset = Subset(Squares(10), torch.tensor([3, 5, 9]))
    assert [batch["x"].tolist() for batch in Loader(subset, 2)] == [[9, 25], [81]]


def test_augmentation_depends_on_seed_and_batch_not_on_processes() -> None:
    def drawn(**options: Any) -> list[Tensor]:
        return [batch["u"] for batch in loader(24, augmentation=Draws(), shuffle=True, **options)]

    alone = drawn(batch_size=6, seed=1)
    assert [u.shape for u in alone] == [(6, 2)] * 4
    assert len({float(x) for u in alone for x in u.flatten()}) == 48
    torch.rand(3)  # what is drawn elsewhere does not matter
    for mine, theirs in zip(alone, drawn(batch_size=6, seed=1), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(alone[0], drawn(batch_size=6, seed=2)[0])
    shares = [drawn(batch_size=6, seed=1, rank=rank, world_size=2) for rank in range(2)]
    for whole, even, odd in zip(alone, *shares, strict=True):
        assert torch.equal(whole[0::2], even)
        assert torch.equal(whole[1::2], odd)


def test_workers_do_not_change_the_stream_or_its_position() -> None:
    def make(workers: int) -> Loader:
        return Loader(
            Squares(20), 4, shuffle=True, augmentation=Draws(), workers=workers, seed=3
        )  # five batches an epoch

    def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return all(torch.equal(a[name], b[name]) for name in ("x", "u"))

    plain, ahead = make(0), make(2)
    state = torch.get_rng_state()
    for _ in range(2):
        batches = list(zip(plain, ahead, strict=True))
        assert len(batches) == 5
        assert all(same(*pair) for pair in batches)
    assert torch.equal(torch.get_rng_state(), state)

    stream = iter(ahead)
    next(stream), next(stream)
    assert ahead.state_dict() == {"batches": 12}
    again, control = make(2), make(0)
    again.load_state_dict({"batches": 12})
    control.load_state_dict({"batches": 12})
    assert same(next(iter(again)), next(iter(control)))


def test_negative_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must not be negative, got -1"):
        loader(workers=-1)
