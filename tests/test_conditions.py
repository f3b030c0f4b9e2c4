"""Conditions by name: from the data, through the loss and the guidance, to the network, with every refusal."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import by_class
from shell import cli, tiny_config, tiny_data, tiny_module, tiny_trainer
from torch import Tensor, nn

from diffusion_pl.checkpoints.migrations import named_dropout, without_classes
from diffusion_pl.conditions import (
    Condition,
    Conditions,
    check_batch,
    check_names,
    class_number,
    from_plain,
    label,
    null,
    to_plain,
)
from diffusion_pl.data import Moons
from diffusion_pl.data.points import Points
from diffusion_pl.denoisers import ClassifierFree, Denoiser, NetworkDenoiser, Prediction, V
from diffusion_pl.losses import SNR, DenoisingLoss, Loss, Losses, UniformTimes
from diffusion_pl.networks import MLP, ConvUNet, DiT, LinearAttentionUNet, NCSNpp, UNet
from diffusion_pl.schedules import VP
from diffusion_pl.training import NoisyClassifier

SHAPES = {"label": (), "vector": (5,), "sequence": (7, 5), "image": (3, 8, 8)}


# Conditions themselves.


@pytest.mark.parametrize("kind", SHAPES)
def test_the_shape_says_the_kind(kind: str) -> None:
    assert Condition(SHAPES[kind]).kind == kind


@pytest.mark.parametrize(("classes", "names"), [(0, None), (2, ["a"]), (1, ["a", "b"])])
def test_a_label_has_classes_and_as_many_names(classes: int, names: list[str] | None) -> None:
    with pytest.raises(ValueError, match="a label "):
        label(classes, names)


def test_null_is_minus_one_for_labels_and_zero_for_others() -> None:
    assert torch.equal(null(torch.tensor([3, 0])), torch.tensor([-1, -1]))
    value = torch.randn(2, 7, 5, dtype=torch.float64)
    assert null(value).isnan().all() and null(value).shape == value.shape


def test_plain_values_give_the_conditions_back() -> None:
    conditions = {"label": label(2, ["cat", "dog"]), "text": Condition((7, 5))}
    assert from_plain(to_plain(conditions)) == conditions


def test_a_class_name_goes_before_a_number() -> None:
    tens = label(3, ["10", "2", "dress"])
    assert [class_number("label", tens, asked) for asked in ("10", "2", "dress", "0", 1)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("condition", "asked", "message"),
    [
        (label(2, ["cat", "dog"]), "dgo", r"cond.pet: expected a number in 0 … 1, .*0 cat, 1 dog; got dgo; .*mean dog"),
        (label(2, ["cat", "dog"]), 2, "got 2$"),
        (label(2), "cat", "the checkpoint has no names of classes; got cat"),
        (label(2), -1, "expected a number in 0 … 1; got -1"),
    ],
)
def test_an_unknown_class_lists_the_known_ones(condition: Condition, asked: int | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_number("pet", condition, asked)


def test_an_unknown_condition_lists_the_known_ones() -> None:
    check_names({"pet": 1}, {"pet": label(2), "text": Condition((7, 5))})
    with pytest.raises(ValueError, match=r"cond\.pte: .* it has pet, text"):
        check_names({"pte": 1}, {"pet": label(2), "text": Condition((7, 5))})
    with pytest.raises(ValueError, match=r"cond\.pet: .*unconditional"):
        check_names({"pet": 1}, {})


# Batches.


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "the batch lacks label, .* conditions are: label"),
        ({"label": torch.zeros(4), "text": torch.zeros(4)}, "the batch holds text, .* conditions are: label"),
        ({"label": torch.zeros(4, 1)}, r"label is of shape \(4, 1\), expected \(4,\)"),
        ({"label": torch.zeros(3)}, r"label is of shape \(3,\), expected \(4,\)"),
    ],
)
def test_batches_of_other_conditions_are_refused(batch: dict[str, Tensor], message: str) -> None:
    x = {"x": torch.zeros(4, 2)}
    check_batch({**x, "label": torch.zeros(4)}, by_class(2))
    check_batch({**x, "label": torch.zeros(4), "augment": torch.zeros(4, 9)}, by_class(2), ("augment",))
    with pytest.raises(ValueError, match=message):
        check_batch({**x, **batch}, by_class(2))


def test_the_first_step_checks_the_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Conditions] = []
    monkeypatch.setattr("diffusion_pl.training.base.check_batch", lambda batch, known, others: seen.append(known))
    tiny_trainer(tmp_path, max_steps=3).fit(tiny_module(), datamodule=tiny_data())
    assert seen == [{}]


def test_data_of_other_conditions_than_the_models_are_refused(tmp_path: Path) -> None:
    class Deaf(MLP):
        def forward(
            self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, jump: Tensor | None = None, **cond: Tensor
        ) -> Tensor:
            return super().forward(x, c_noise)

    labelled = Moons(batch_size=64, conditional=True)
    with pytest.raises(ValueError, match="the batch holds label, the model's conditions are: none"):
        tiny_trainer(tmp_path).fit(tiny_module(network=Deaf), datamodule=labelled)
    with pytest.raises(ValueError, match="the batch lacks label"):
        tiny_trainer(tmp_path).fit(tiny_module(conditions=by_class(2)), datamodule=Moons(batch_size=64))


# Networks.

NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "MLP": (MLP, (2,)),
    "UNet": (UNet, (3, 16, 16)),
    "NCSNpp": (NCSNpp, (3, 16, 16)),
    "ConvUNet": (ConvUNet, (3, 8, 8)),
    "DiT": (DiT, (3, 8, 8)),
    "LinearAttentionUNet": (LinearAttentionUNet, (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_refuses_what_it_cannot_embed(name: str) -> None:
    make, shape = NETWORKS[name]
    refused = {"pet": label(3), "vec": Condition((5,)), "text": Condition((7, 5)), "map": Condition(SHAPES["image"])}
    embedded = {"MLP": ("pet", "vec", "text"), "ConvUNet": (), "LinearAttentionUNet": ()}.get(name, tuple(refused))
    refused = {key: value for key, value in refused.items() if key not in embedded}
    refused["label"] = Condition((3, 8, 8))
    for condition, value in refused.items():
        with pytest.raises(ValueError, match=f"^{name}: cannot embed the condition {condition} .a {value.kind} "):
            make(shape, {condition: value})


class Old(nn.Module):
    """As version 0.1 had networks written."""

    def __init__(self, shape: tuple[int, ...], classes: int | None = None, width: int = 4) -> None:
        super().__init__()
        self.line = nn.Linear(shape[0], shape[0])

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        y: Tensor = self.line(x)
        return y


@pytest.mark.parametrize("network", [Old, partial(Old, width=3), lambda shape, classes: Old(shape)])
def test_a_network_with_the_old_classes_argument_gets_a_hint(network: Any) -> None:
    with pytest.raises(
        ValueError, match=r"its second parameter is now `conditions`, a dict of Condition; .*classes is"
    ):
        tiny_module(network=network)
    classifier = partial(NoisyClassifier, network, VP(), UniformTimes(), torch.optim.Adam)
    with pytest.raises(ValueError, match="its second parameter is now `conditions`"):
        classifier(conditions=by_class(2))


def test_a_network_that_takes_classes_is_one_line_in_a_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model__network={"class_path": "test_conditions.Old", "init_args": {"width": 3}})
    assert (
        "model.network: Old: its second parameter is now `conditions`" in cli(tmp_path, "fit", "--config", config).error
    )


# Losses.


class Listening(nn.Module):
    """Keeps the conditions of its calls; F = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Tensor) -> Tensor:
        self.calls.append(cond)
        return torch.zeros_like(x)


def dropped(dropout: dict[str, float], cond: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    network = Listening()
    loss, rng = DenoisingLoss(UniformTimes(), SNR(), dropout=dropout), torch.Generator().manual_seed(3)
    loss(NetworkDenoiser(network, VP(), V()), torch.zeros(n, 2), cond, rng)
    return network.calls[0]


def test_label_dropout_is_drawn_after_time_and_noise() -> None:
    """As version 0.1 drew them: t, then ε, then one coin an example."""
    labels = torch.arange(64) % 5
    result = dropped({"label": 0.3}, {"label": labels}, 64)["label"]
    rng = torch.Generator().manual_seed(3)
    torch.rand(64, generator=rng)
    torch.randn(64, 2, generator=rng)
    assert torch.equal(result, torch.where(torch.rand(64, generator=rng) < 0.3, -1, labels))


def test_each_condition_is_dropped_by_itself_to_its_null() -> None:
    n = 20_000
    cond = {"label": torch.arange(n) % 5, "text": torch.ones(n, 7, 5), "kept": torch.ones(n, 3)}
    result = dropped({"label": 0.2, "text": 0.5}, cond, n)
    no_label, no_text = result["label"] == -1, result["text"].isnan().flatten(1).all(1)
    rates = [float(part.float().mean()) for part in (no_label, no_text, no_label & no_text)]
    assert rates == pytest.approx([0.2, 0.5, 0.1], abs=0.015)
    assert torch.equal(result["text"][~no_text], cond["text"][~no_text])
    assert torch.equal(result["kept"], cond["kept"])


def test_dropout_of_an_unknown_condition_is_refused(tmp_path: Path) -> None:
    loss = DenoisingLoss(UniformTimes(), SNR(), dropout={"label": 0.1, "text": 0.1})
    model = tiny_module(loss=loss, conditions=by_class(2))
    with pytest.raises(ValueError, match=r"model\.loss\.dropout\.text: .* it has label"):
        tiny_trainer(tmp_path).fit(model, datamodule=Moons(batch_size=64, conditional=True))


def test_doctor_and_fit_refuse_dropout_of_an_unknown_condition(tmp_path: Path) -> None:
    moons = {"class_path": "Moons", "init_args": {"batch_size": 32, "conditional": True}}
    config = tiny_config(tmp_path, data=moons)
    options = ("--config", config, "--model.loss.dropout", "{text: 0.1}")
    error = cli(tmp_path, "fit", *options).error
    assert "model.loss.dropout.text: the model has no such condition; it has label" in error
    result = cli(tmp_path, "doctor", *options)
    assert (result.code, "model.loss.dropout.text" in result.out) == (2, True)


def test_dropout_of_an_unconditional_model_drops_nothing(tmp_path: Path) -> None:
    """As label_dropout did in 0.1: one configuration serves with labels and without."""
    config = tiny_config(tmp_path, trainer__max_steps=1)
    done = cli(tmp_path, "fit", "--config", config, "--model.loss.dropout", "{label: 0.1}")
    assert done.code == 0, done.err


class Absolute(Loss):
    """|x̂_0 − x_0| at one time, which knows nothing of weightings."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.times, self.t = UniformTimes(), t

    def forward(
        self,
        denoiser: NetworkDenoiser,
        x_0: Tensor,
        cond: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        observed: Tensor | None = None,
    ) -> Losses:
        t = torch.full((len(x_0), 1), self.t)
        kernel = denoiser.schedule(t)
        x_t = kernel.alpha * x_0 + kernel.sigma * torch.randn(x_0.shape, generator=generator)
        return Losses((denoiser(x_t, t, **(cond or {})).x_0 - x_0).abs().mean(1), t.flatten())


def test_a_loss_of_ones_own_trains_from_a_configuration(tmp_path: Path) -> None:
    loss = {"class_path": "test_conditions.Absolute", "init_args": {"t": 0.5}}
    config = tiny_config(tmp_path, model__loss=loss, trainer__max_steps=10)
    assert cli(tmp_path, "fit", "--config", config).run


# Guidance.


class Sum(Denoiser):
    """x̂_0 is the sum of the conditions, one number an example; 10 for label −1, 0 for a text that is not given."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = VP()

    def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Prediction:
        label, text = cond["label"], cond["text"]
        total = torch.where(label < 0, 10, label).double() + text.nan_to_num().flatten(1).sum(1)
        x_0 = total[:, None].expand(x_t.shape)
        return Prediction(x_0, (x_t - self.schedule(t).alpha * x_0) / self.schedule(t).sigma)


@pytest.mark.parametrize(("drop", "without"), [(("label",), 10 + 6), (("text",), 2), (("label", "text"), 10)])
def test_guidance_drops_the_conditions_that_it_names(drop: tuple[str, ...], without: float) -> None:
    """x̂_0 = w (2 + 6) + (1 − w) of what is left of the sum 2 + 6."""
    cond = {"label": torch.full((3,), 2), "text": torch.ones(3, 2, 3, dtype=torch.float64)}
    x_t, t = torch.zeros(3, 1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    result = ClassifierFree(Sum(), 3.0, drop=drop)(x_t, t, **cond).x_0
    torch.testing.assert_close(result, torch.full_like(result, 3 * 8 - 2 * without))


def test_guidance_by_a_condition_that_is_not_there_is_refused() -> None:
    guided = ClassifierFree(Sum(), 2.0, drop=["label", "image"])
    with pytest.raises(ValueError, match=r"drops image, the conditions are: label, text$"):
        guided(torch.zeros(2, 1), torch.tensor(0.5), label=torch.zeros(2), text=torch.zeros(2, 1))
    for drop in ((), "label"):
        with pytest.raises(ValueError, match="drop must be a list of one or more conditions"):
            ClassifierFree(Sum(), 2.0, drop=drop)


# Another kind than labels, all the way.


class Shifted(Points):
    """Points around a place of their own, which is their condition."""

    def __init__(self) -> None:
        conditions = {"place": Condition((3,))}
        super().__init__("shifted", ("x",), conditions=conditions, batch_size=32, val_fraction=0.1, repeats=1, seed=0)

    def examples(self) -> dict[str, Tensor]:
        place = torch.randn(320, 3, generator=torch.Generator().manual_seed(0))
        return {"x": place[:, :1].double(), "place": place}


class Placed(nn.Module):
    """Takes a vector of the conditions' shape."""

    def __init__(self, shape: tuple[int, ...], conditions: Conditions) -> None:
        super().__init__()
        (width,) = conditions["place"].shape
        self.line = nn.Linear(shape[0] + 1 + width, shape[0])

    def forward(self, x: Tensor, c_noise: Tensor, place: Tensor) -> Tensor:
        y: Tensor = self.line(torch.cat((x, c_noise[:, None], place.nan_to_num()), 1))
        return y


def test_a_vector_reaches_the_network_by_its_name(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        data={"class_path": "test_conditions.Shifted"},
        model__network={"class_path": "test_conditions.Placed"},
        model__loss__dropout={"place": 0.1},
        trainer__max_steps=10,
    )
    assert cli(tmp_path, "fit", "--config", config).run
    assert cli(tmp_path, "fit", "--config", config, "--model.network", "MLP").run


# What version 0.1 wrote.


@pytest.mark.parametrize("deep", [True, False])
def test_label_dropout_of_old_configurations_becomes_dropout(deep: bool) -> None:
    def spec(options: dict[str, Any]) -> dict[str, Any]:
        return {"class_path": "a.B", "init_args": options} if deep else options

    def config(loss: dict[str, Any], **model: Any) -> dict[str, Any]:
        return {"model": spec({"loss": spec({"times": 1, **loss}), **model}), "data": 2}

    old = config({"label_dropout": 0.1}, compile=False)
    assert named_dropout(old) == config({"dropout": {"label": 0.1}}, compile=False)
    assert old == config({"label_dropout": 0.1}, compile=False)
    assert named_dropout(config({"label_dropout": 0.0})) == config({"dropout": None})
    for new in (config({"dropout": {"label": 0.1}}), config({}), {"data": 2}, {"model": "a.yaml"}):
        assert named_dropout(new) == new
    assert without_classes(config({}, classes=10)) == config({})
    assert without_classes(config({})) == config({})
