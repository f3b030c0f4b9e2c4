"""Fields: files, axes, scaling, missing values, conditions, splits, and what a checkpoint keeps of them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fields_model import MEANS, STDS, fields, save
from numpy.typing import NDArray
from torch import Tensor

from diffusion_pl.conditions import Condition
from diffusion_pl.data import HDF5, Arrays, Fields
from diffusion_pl.data.axes import as_stored, axes_of, channels_first, example_shape
from diffusion_pl.data.field_measures import ChannelMoments
from diffusion_pl.data.loader import Tensors

X = fields(40, 3, 6, 8)
ENDINGS = [".npy", ".npz", ".h5", ".zarr2", ".zarr3"]


def ready(path: str, **options: Any) -> Fields:
    data = Fields(path, **({"batch_size": 8} | options))
    data.setup()
    return data


def everything(data: Fields, split: str = "train") -> dict[str, Tensor]:
    batches = list(data.batches(split, 7))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def laid_out(x: NDArray[Any], axes: str) -> NDArray[Any]:
    """x: (N, C, *sizes) as a file of these axes has it."""
    order = "N" + "C" + axes.replace("N", "").replace("C", "")
    return x[:, 0] if "C" not in axes else x.transpose([order.index(letter) for letter in axes])


# Axes.


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((9, 64), "NL"),
        ((9, 3, 64), "NCL"),
        ((9, 64, 2), "NLC"),
        ((9, 4, 8, 8), "NCHW"),
        ((9, 8, 8, 1), "NHWC"),
        ((9, 2, 8, 8, 8), "NCDHW"),
        ((9, 8, 8, 8, 3), "NDHWC"),
    ],
)
def test_axes_are_inferred_where_one_has_few_entries(shape: tuple[int, ...], axes: str) -> None:
    assert axes_of("x", shape, None) == axes


@pytest.mark.parametrize("shape", [(9, 64, 64), (9, 7, 8, 8), (9, 3, 8, 3), (9, 8, 8, 8, 8), (9,), (1, 2, 3, 4, 5, 6)])
def test_axes_that_are_not_clear_are_asked_for(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="axes") as caught:
        axes_of("x", shape, None)
    assert "\n" not in str(caught.value)
    assert "--data.axes" in str(caught.value) or not 3 <= len(shape) <= 5


@pytest.mark.parametrize("axes", ["NHW", "CHWN", "NCHWC", "N", "NC", "nchw", "NCTDHW", "N HW", ""])
def test_bad_axes_are_refused(axes: str) -> None:
    with pytest.raises(ValueError, match="axes"):
        axes_of("x", (9, 3, 8, 8), axes)


@pytest.mark.parametrize("axes", ["NHWC", "NCHW", "NHCW", "NLC", "NCL", "NHW", "NL", "NDHW", "NDHWC", "NDCHW"])
def test_axes_there_and_back(axes: str) -> None:
    stored = np.random.default_rng(0).normal(size=[2, *range(3, 2 + len(axes))])
    x = channels_first(stored, axes)
    assert x.shape == (2, *example_shape(stored.shape, axes))
    assert np.array_equal(as_stored(x, axes), stored)


# Files.


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "disk"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_fields(tmp_path: Path, ending: str, memory_gb: float) -> None:
    path = save(tmp_path / f"x{ending}", x=laid_out(X, "NHWC").astype(np.float32))
    data = ready(path, memory_gb=memory_gb, val_fraction=0.2)
    assert data.shape == (3, 6, 8)
    assert isinstance(data.splits[0].source, Tensors) == (memory_gb > 0)  # type: ignore[attr-defined]
    rows = data.splits[0].indices  # type: ignore[attr-defined]
    some = torch.tensor([5, 1, 5, 0, 20])
    assert np.array_equal(data.stored(some)["x"].numpy(), X.astype(np.float32)[rows[some]])
    assert data.conditions == {}


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_are_read_in_another_process(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"x{ending}", x=X)
    data = ready(path, memory_gb=0.0)
    data.stored(torch.arange(3))  # opens the file
    other = pickle.loads(pickle.dumps(data.splits[0]))
    assert torch.equal(other.__getitems__(torch.arange(9))["x"], data.stored(torch.arange(9))["x"])
    if ending != ".npz":
        assert len(pickle.dumps(other)) < X.nbytes / 4


@pytest.mark.parametrize(
    ("axes", "sizes"), [("NL", (16,)), ("NLC", (16,)), ("NHW", (6, 8)), ("NCHW", (6, 8)), ("NDHWC", (4, 6, 8))]
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_samples_are_written_as_the_file_was(tmp_path: Path, ending: str, axes: str, sizes: tuple[int, ...]) -> None:
    """Format, key, axes, type and units; to one unit in the last place of float32."""
    x = fields(30, 3 if "C" in axes else 1, *sizes)
    stored = laid_out(x, axes).astype(np.float32)
    data = ready(save(tmp_path / f"x{ending}", values=stored), axes=axes, val_fraction=0.0)
    away = Fields("missing.npy")
    away.load_state_dict(data.state_dict())
    encoded = away.read(Path(data.source))
    assert encoded.dtype == torch.float32
    assert encoded.std(dim=(0, *range(2, encoded.ndim)), correction=0).numpy() == pytest.approx(1, abs=1e-3)
    (tmp_path / "out").mkdir()
    (path,) = away.write(encoded, tmp_path / "out")
    assert path.suffix == ending.rstrip("23")
    again = ready(str(path), key="values" if ending not in (".npy",) else None, axes=axes, val_fraction=0.0)
    back = as_stored(again.stored(torch.arange(30))["x"].numpy(), axes)
    assert back.dtype == np.float32 and again.format.kind == data.format.kind
    # Of a value that is small compared with its distance from the mean, the error is relative to that distance.
    mean = as_stored(np.broadcast_to(data.units.mean.numpy(), x.shape), axes)
    scale = np.maximum(abs(stored), abs(stored - mean)).astype(np.float32)
    assert (abs(back.astype(np.float64) - stored) <= np.spacing(scale)).all()


@pytest.mark.parametrize(("dtype", "digits"), [(np.float16, 2e-3), (">f4", 1e-6), (np.float64, 1e-6)])
def test_other_types_of_floats(tmp_path: Path, dtype: Any, digits: float) -> None:
    x = fields(20, 1, 8, 8) + 3
    data = ready(save(tmp_path / "x.npy", x=x.astype(dtype)), val_fraction=0.0)
    batch = everything(data)
    assert batch["x"].dtype == torch.float32
    assert batch["x"].double().std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert data.array(batch["x"]) == pytest.approx(x, abs=digits * 10)
    assert data.array(batch["x"]).dtype == np.dtype(dtype).newbyteorder("=")


def test_a_single_field_is_read_too(tmp_path: Path) -> None:
    data = ready(save(tmp_path / "x.npy", x=X))
    np.save(tmp_path / "one.npy", X[3])
    assert torch.equal(data.read(tmp_path / "one.npy"), data.read(tmp_path / "x.npy")[3:4])


def test_a_mask_is_read_in_any_layout(tmp_path: Path) -> None:
    data = ready(save(tmp_path / "x.npy", x=laid_out(X, "NHWC")))
    mask = np.zeros((6, 8), bool)
    mask[2:] = True
    for k, laid in enumerate((mask, mask[..., None], mask[None], mask[None, ..., None].repeat(3, 3))):
        np.save(tmp_path / f"mask{k}.npy", laid)
        assert np.array_equal(data.read_mask(tmp_path / f"mask{k}.npy").numpy(), mask[None, None])


# Scaling.


def test_each_channel_is_scaled_over_the_training_split(tmp_path: Path) -> None:
    data = ready(save(tmp_path / "x.npy", x=X), val_fraction=0.3)
    train = X[data.splits[0].indices]  # type: ignore[attr-defined]
    assert data.units.mean.flatten().tolist() == pytest.approx(train.mean((0, 2, 3)).tolist(), rel=1e-12, abs=1e-12)
    assert data.units.std.flatten().tolist() == pytest.approx(train.std((0, 2, 3)).tolist(), rel=1e-12)
    x = everything(data)["x"].double()
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert data.second_moment() == pytest.approx(1, abs=1e-6)
    assert torch.equal(data.training_examples(1000), x.float())
    assert (data.units.levels, data.is_field, data.is_image, data.is_point) == (None, True, False, False)


def test_moments_of_blocks_are_those_of_the_whole() -> None:
    """Also where the mean is 10^8 times the deviation, and where some values are missing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2, 7)) * np.array([[1.0], [1e-3]]) + np.array([[1e8], [0.0]])
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:10, 1] = np.nan  # a channel without values in the first blocks
    moments = ChannelMoments(2)
    for block in np.array_split(x, 17):
        moments.add(torch.from_numpy(block))
    moments.add(torch.empty(0, 2, 7))
    assert moments.mean.tolist() == pytest.approx(np.nanmean(x, (0, 2)).tolist(), rel=1e-14, abs=1e-17)
    assert moments.std.tolist() == pytest.approx(np.nanstd(x, (0, 2)).tolist(), rel=1e-7)
    assert moments.count.tolist() == np.isfinite(x).sum((0, 2)).tolist()


# Missing values.


def test_missing_values_are_counted_and_refused(tmp_path: Path) -> None:
    x = X.copy()
    x[7, 0, 0, :2], x[30, 1, 2, 2] = np.nan, np.inf
    path = save(tmp_path / "x.npy", x=x)
    for memory_gb in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"3 values in 2 examples .* first in example 7\. Fix: .*data\.missing"):
            ready(path, memory_gb=memory_gb)


def test_missing_values_are_masked_on_request(tmp_path: Path) -> None:
    x = X.copy()
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    data = ready(save(tmp_path / "x.npy", x=x), missing="mask", val_fraction=0.2)
    rows = data.splits[0].indices  # type: ignore[attr-defined]
    assert data.units.mean.flatten().tolist() == pytest.approx(np.nanmean(x[rows], (0, 2, 3)).tolist(), rel=1e-12)
    batch = everything(data)
    assert np.array_equal(batch["observed"].numpy(), ~np.isnan(x[rows]))
    assert batch["x"][~batch["observed"]].eq(0).all()
    assert data.decode(batch["x"].double())[batch["observed"]].numpy() == pytest.approx(
        x[rows][~np.isnan(x[rows])], 1e-6
    )
    assert data.second_moment() == pytest.approx(1, abs=1e-6)


def test_values_of_no_use_name_their_channel(tmp_path: Path) -> None:
    constant, missing = X.copy(), X.copy()
    constant[:, 1], missing[:, 2] = 0.1, np.nan
    with pytest.raises(ValueError, match=r"channel 1 is 0\.1 in all training examples"):
        ready(save(tmp_path / "x.npy", x=constant))
    with pytest.raises(ValueError, match="channel 2 has no value"):
        ready(save(tmp_path / "x.npy", x=missing), missing="mask")
    with pytest.raises(ValueError, match="channel 0 has values too large"):
        ready(save(tmp_path / "x.npy", x=np.concatenate([X, -X]) * 1e200))


# Conditions.


def conditional(folder: Path, ending: str = ".npz", **options: Any) -> Fields:
    rng = np.random.default_rng(2)
    arrays = {
        "x": laid_out(X, "NHWC"),
        "past": laid_out(X[::-1], "NHWC") + 5,
        "orography": laid_out(X[:, :1] * 0.1, "NHW"),
        "forcing": rng.normal(3, 2, (40, 5)),
        "year": rng.uniform(1900, 2000, 40),
        "tokens": rng.normal(size=(40, 4, 7)),
        "label": np.arange(40) % 4,
    }
    path = save(folder / f"all{ending}", **arrays)
    names = {name: name for name in arrays if name != "x"}
    return ready(path, conditions=names, val_fraction=0.2, **options)


@pytest.mark.parametrize(("ending", "memory_gb"), [(".npz", 1.0), (".h5", 0.0), (".zarr3", 0.0)])
def test_the_kind_of_a_condition_follows_from_its_array(tmp_path: Path, ending: str, memory_gb: float) -> None:
    data = conditional(tmp_path, ending, memory_gb=memory_gb)
    kinds = {name: (c.kind, c.shape) for name, c in data.conditions.items()}
    assert kinds == {
        "past": ("image", (3, 6, 8)),
        "orography": ("image", (1, 6, 8)),
        "forcing": ("vector", (5,)),
        "year": ("vector", (1,)),
        "tokens": ("sequence", (4, 7)),
        "label": ("label", ()),
    }
    batch = everything(data)
    assert {name: tuple(value.shape[1:]) for name, value in batch.items()} == {
        name: shape for name, (_, shape) in kinds.items()
    } | {"x": (3, 6, 8)}
    rows = data.splits[0].indices  # type: ignore[attr-defined]
    for name, axes in (("past", (0, 2, 3)), ("orography", (0, 2, 3)), ("forcing", 0), ("year", 0), ("tokens", (0, 1))):
        values = batch[name].double().numpy()
        assert values.mean(axes) == pytest.approx(0, abs=1e-5)
        assert values.std(axes) == pytest.approx(1, abs=1e-5)
    past = data.decode_condition("past", batch["past"].double())
    assert past.numpy() == pytest.approx(X[::-1][rows] + 5, rel=1e-6, abs=1e-5)
    assert batch["label"].tolist() == (rows % 4).tolist()
    assert data.class_counts == np.bincount(rows % 4).tolist()


def test_conditions_are_read_in_the_users_units(tmp_path: Path) -> None:
    """From files of one value or several, in the layout of the data; of a vector also as text."""
    data = conditional(tmp_path)
    rows = data.splits[0].indices  # type: ignore[attr-defined]
    batch, arrays, readers = everything(data), np.load(tmp_path / "all.npz"), data.readers
    assert readers.keys() == data.conditions.keys() - {"label"}
    for name, read in readers.items():
        np.save(tmp_path / "some.npy", arrays[name][rows[:3]])
        np.save(tmp_path / "one.npy", arrays[name][rows[0]])
        assert torch.equal(read(str(tmp_path / "some.npy")), batch[name][:3])
        if name != "year":
            assert torch.equal(read(tmp_path / "one.npy"), batch[name][:1])
    year = arrays["year"][rows[0]]
    assert torch.equal(readers["year"](f"{year!s}"), batch["year"][:1])
    assert torch.equal(readers["forcing"](f"[{', '.join(map(str, arrays['forcing'][rows[0]]))}]"), batch["forcing"][:1])
    np.save(tmp_path / "other.npy", np.zeros((4, 4)))
    for name, given, message in (
        ("forcing", "1, 2", r"cond\.forcing: expected 5 numbers"),
        ("year", "late", r"cond\.year: expected a number"),
        ("past", tmp_path / "other.npy", r"cond\.past: .*expected the image of shape \(3, 6, 8\)"),
        ("tokens", tmp_path / "none.npy", "no such file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            readers[name](given)


def test_an_image_along_one_axis_is_no_sequence(tmp_path: Path) -> None:
    x = fields(20, 2, 16)
    path = save(tmp_path / "x.npz", x=x, past=x, tokens=x[:, :, :5])
    data = ready(path, key="x", conditions={"past": "past", "tokens": "tokens"})
    assert data.conditions == {"past": Condition((2, 16), image=True), "tokens": Condition((2, 5))}
    assert everything(data)["past"].std(dim=(0, 2)).numpy() == pytest.approx(1, abs=2e-2)


def test_a_condition_may_be_in_a_file_next_to_the_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    path = save(tmp_path / "sub" / "x.npy", x=X)
    save(tmp_path / "sub" / "year.npy", y=np.arange(40.0))
    monkeypatch.chdir(tmp_path)
    assert ready(path, conditions={"year": "year.npy"}).conditions == {"year": Condition((1,))}


def test_values_that_are_not_given_are_nan(tmp_path: Path) -> None:
    forcing, past = np.random.default_rng(0).normal(size=(40, 2)), X.copy()
    forcing[3], past[5, 0, 1, 1] = np.nan, np.nan
    path = save(tmp_path / "x.npz", x=X, forcing=forcing, past=past)
    data = ready(path, key="x", conditions={"forcing": "forcing", "past": "past"}, val_fraction=0.0)
    batch = everything(data)
    assert batch["forcing"].isnan().nonzero()[:, 0].tolist() == [3, 3]
    assert batch["past"].isnan().nonzero().tolist() == [[5, 0, 1, 1]]
    assert batch["forcing"].nanmean(0).numpy() == pytest.approx(0, abs=1e-6)
    forcing[3, 0] = 1.0
    with pytest.raises(ValueError, match="condition forcing has NaN and numbers in example 3"):
        ready(save(tmp_path / "y.npz", x=X, forcing=forcing), key="x", conditions={"forcing": "forcing"})
    forcing[3] = np.inf
    with pytest.raises(ValueError, match="condition forcing has infinite values, the first in example 3"):
        ready(save(tmp_path / "z.npz", x=X, forcing=forcing), key="x", conditions={"forcing": "forcing"})


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("c", np.zeros(39), "one value for each of 40 examples"),
        ("c", np.zeros((40, 3), int), r"int64 \(40, 3\): integers must be \(N,\)"),
        ("c", np.zeros((40, 3, 5, 8)), "sizes of the fields"),
        ("c", np.arange(40) - 1, "label -1"),
        ("c", np.zeros(40), "condition c, entry 0 is 0 in all"),
        ("x", np.zeros(40), "name"),
        ("observed", np.zeros(40), "name"),
        ("c", None, r"data\.conditions\.c: c is neither an array .* nor a file"),
    ],
)
def test_bad_conditions_are_refused(tmp_path: Path, name: str, array: Any, message: str) -> None:
    arrays = {"fields": X} | ({} if array is None else {"c": array})
    with pytest.raises(ValueError, match=message) as caught:
        ready(save(tmp_path / "x.npz", **arrays), key="fields", conditions={name: "c"})
    assert "\n" not in str(caught.value)


# Both directions of a mistake, and other files.


def test_integers_are_refused_and_taken_on_request(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 200, (20, 1, 8, 8), np.uint8)
    path = save(tmp_path / "x.npy", x=x)
    with pytest.raises(ValueError, match=r"uint8.*data\.as_float.*--data Arrays"):
        ready(path)
    data = ready(path, as_float=True, val_fraction=0.0)
    assert data.array(everything(data)["x"]) == pytest.approx(x, abs=1e-3)


def test_floats_as_images_are_sent_to_fields(tmp_path: Path) -> None:
    x = laid_out(X, "NHWC")
    with pytest.raises(ValueError, match="--data Fields"):
        Arrays(save(tmp_path / "x.npy", x=x)).shape  # noqa: B018
    with pytest.raises(ValueError, match="--data Fields"):
        HDF5(save(tmp_path / "x.h5", imgs=x), "imgs").shape  # noqa: B018


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("x.npy", lambda p: None, "no such file"),
        ("x.npy", lambda p: p.write_text("1 2 3"), "another format"),
        ("x.npy", lambda p: p.write_bytes(b""), "empty"),
        ("x.npy", lambda p: np.save(p, np.zeros((0, 3, 4))), "holds no fields"),
        ("x.npy", lambda p: np.save(p, np.zeros((4, 3, 4), complex)), "real numbers"),
        ("x.npy", lambda p: np.save(p, np.array([{}]), allow_pickle=True), "Python objects"),
        ("x.npz", lambda p: save(p, a=X, b=X), r"which array.*data\.key"),
        ("x.h5", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "damaged"),
        ("x.zarr", lambda p: p.mkdir(), "not a zarr folder"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, name: str, make: Any, message: str) -> None:
    make(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        ready(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_without_zarr_its_folders_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.zarr3", x=X)
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(ValueError, match=r"needs the package zarr\. Fix: pip install"):
        ready(path)


def test_a_damaged_chunk_of_zarr_is_one_line(tmp_path: Path) -> None:
    path = Path(save(tmp_path / "x.zarr3", x=X))
    chunk = next(file for file in sorted((path / "x" / "c").rglob("*")) if file.is_file())
    chunk.write_bytes(b"no chunk")
    with pytest.raises(ValueError, match="a chunk of x is damaged"):
        ready(str(path))


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_were_not_written_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: Any
) -> None:
    """They are read as the fill value: a number is said to be one, NaN is missing as any other."""
    import zarr

    for name, fill in (("zero", 0.0), ("nan", float("nan"))):
        options = {"shape": (12, 16), "chunks": (2, 16), "dtype": "float32", "zarr_format": version}
        array = zarr.create_array(tmp_path / name, fill_value=fill, **options)
        array[2:] = np.random.default_rng(0).normal(size=(10, 16))
    ready(str(tmp_path / "zero"))
    assert "zero: 1 of 6 chunks of the array are not in the folder and are read as its fill value 0." in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="32 values in 2 examples are NaN or infinite"):
        ready(str(tmp_path / "nan"))
    array[:2] = 1
    ready(str(tmp_path / "nan"))
    assert "fill value" not in capsys.readouterr().out


def test_a_zarr_folder_of_one_array(tmp_path: Path) -> None:
    import zarr

    zarr.create_array(tmp_path / "x.zarr", data=X, chunks=(1, 3, 6, 8))
    data = ready(str(tmp_path / "x.zarr"), val_fraction=0.0)
    (tmp_path / "out").mkdir()
    (path,) = data.write(everything(data)["x"], tmp_path / "out")
    assert zarr.open_array(path, mode="r")[...] == pytest.approx(X, rel=1e-6, abs=1e-4)
    with pytest.raises(ValueError, match=r"remove data\.key"):
        ready(str(tmp_path / "x.zarr"), key="x")


# Splits and checkpoints.


@pytest.mark.parametrize("ending", [".npy", ".zarr3"])
def test_the_stream_does_not_depend_on_memory_or_workers(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"x{ending}", x=X)
    memory = ready(path, repeats=2).train_dataloader()
    for options in ({"memory_gb": 0.0}, {"memory_gb": 0.0, "workers": 1}):
        stream = ready(path, repeats=2, **options).train_dataloader()
        assert len(stream) == len(memory)
        for mine, theirs in zip(stream, memory, strict=True):
            assert torch.equal(mine["x"], theirs["x"])
        memory.load_state_dict({"batches": 0})


def test_processes_share_the_batches_of_one(tmp_path: Path) -> None:
    data = conditional(tmp_path)
    alone = data.loader(data.part("train"), 8, train=True, seed=3)
    halves = [data.loader(data.part("train"), 8, train=True, seed=3) for _ in range(2)]
    for rank, half in enumerate(halves):
        half.rank, half.world_size = rank, 2
    for whole, *parts in zip(alone, *halves, strict=True):
        for name, value in whole.items():
            assert torch.equal(torch.stack([part[name] for part in parts], 1).flatten(0, 1), value)


def test_a_checkpoint_keeps_scaling_split_and_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "x.npy", x=X)
    data = ready(path, val_fraction=0.2, seed=1)
    state = data.state_dict()
    other = Fields(path, val_fraction=0.2, seed=99)
    other.load_state_dict(state)
    other.setup()
    assert torch.equal(other.splits[0].indices, data.splits[0].indices)  # type: ignore[attr-defined]
    assert torch.equal(other.units.mean, data.units.mean)
    assert capsys.readouterr().out == ""
    changed = X.copy()
    changed[3] *= 2
    again = Fields(save(tmp_path / "y.npy", x=changed), val_fraction=0.2)
    again.load_state_dict(state)
    again.setup()
    assert torch.equal(again.units.std, data.units.std)  # the units of the network
    assert "not the data that the checkpoint was trained on: 1 changed" in capsys.readouterr().out


def test_units_of_a_checkpoint_need_no_data(tmp_path: Path) -> None:
    data = conditional(tmp_path)
    away = Fields("missing.npz")
    away.load_state_dict(data.state_dict())
    x = everything(data)["x"]
    assert np.array_equal(away.array(x), data.array(x))
    assert away.conditions == data.conditions
    past = everything(data)["past"]
    assert torch.equal(away.decode_condition("past", past), data.decode_condition("past", past))


@pytest.mark.parametrize("other", [X[:, :2], X[:, :, :4]], ids=["channels", "size"])
def test_other_fields_than_the_checkpoints_are_refused(tmp_path: Path, other: NDArray[Any]) -> None:
    state = ready(save(tmp_path / "x.npy", x=X)).state_dict()
    data = Fields(save(tmp_path / "y.npy", x=other))
    data.load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint's fields are 3 x 6 x 8"):
        data.setup()
    with pytest.raises(ValueError, match="3 x 6 x 8"):
        Fields(save(tmp_path / "z.npy", x=other)).check_state(state)


def test_files_to_read_must_be_like_the_data(tmp_path: Path) -> None:
    data = ready(save(tmp_path / "x.npy", x=X))
    for array, message in (
        (X[:, :2], r"expected fields of shape \(N, 3, 6, 8\)"),
        (np.where(X.mean() < X, np.nan, X), "NaN or infinite"),
        (X.astype(int), "as_float"),
    ):
        with pytest.raises(ValueError, match=message):
            data.read(Path(save(tmp_path / "y.npy", x=array)))


def test_the_constants_of_the_tests_are_far_apart() -> None:
    """Or the tests of scaling would show nothing."""
    assert X.mean((0, 2, 3)) == pytest.approx(MEANS, rel=1e-2, abs=0.1)
    assert X.std((0, 2, 3)) == pytest.approx(STDS, rel=1e-6)
