"""python -m diffusion_pl latents: encode a data set of images once, for models that are trained on latents."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data import DataModule
from ..runtime.bounds import check_counts
from ..runtime.output import Report, next_command

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..autoencoders import Autoencoder

_SAVED_EVERY = 20  # batches between two notes of what is done


def latents(
    data: Callable[[], DataModule],
    autoencoder: str,
    output: Path = Path("latents"),
    mirrors: bool = False,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    accelerator: str = "auto",
) -> Report | None:
    """Encode all images of a data set by an autoencoder, and save the moments of their latents.

    `fit --data Latents --data.path FOLDER` trains on them; samples are decoded by the autoencoder, a copy of which is
    in the folder.  A call that was interrupted continues where it stopped when it is repeated.

    Args:
        data: Data module of the images, such as FashionMNIST, with its options, such as --data.path FOLDER.
        autoencoder: Folder or hub name of an autoencoder of diffusers (AutoencoderKL, AutoencoderTiny, AutoencoderDC,
            VQModel), or checkpoint or run of an own one.
        output: Folder for the files, new or empty.
        mirrors: Mirror images encoded too, from which training then draws with probability 1/2.
        dtype: Number format of the files: float16 or float32.
        batch_size: Number of images encoded at a time, at least 1.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    check_counts(batch_size=batch_size)
    from ..autoencoders import weights_hash
    from ..data.base import SPLITS
    from ..runtime.devices import device_of
    from ..runtime.errors import quiet
    from ..runtime.output_folder import OutputFolder
    from ..training.saving import described

    quiet()
    images = data()
    if images.image_shape != images.shape:
        raise ValueError(f"--data {type(images).__name__}: only images with integer values can be encoded")
    if images.augmentation is not None:
        raise ValueError(
            "--data: its augmentation is not encoded. Fix: remove it, and give --mirrors for mirror images"
        )
    codec = open_any(autoencoder)
    shape = codec.latent_shape(images.shape)
    images.prepare_data()
    images.setup("fit")
    spec = _placed(described(images, "data"), images)
    encoder = {"name": _absolute(autoencoder), "sha256": weights_hash(codec)}
    sizes = {split: len(images.part(split)) for split in SPLITS}
    call = {"data": spec, "autoencoder": encoder, "mirrors": mirrors, "dtype": dtype, "splits": sizes}
    codec = codec.to(device_of(accelerator))
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            for split in SPLITS:
                _encode(folder.work, split, images, codec, shape, mirrors, dtype, batch_size)
            record = {**_record(images, folder.work, sizes), **call, "shape": list(shape)}
            report = Report(
                done=f"{sum(sizes.values()):,} images of {type(images).__name__} as latents of {shape}",
                facts={f"{name} of channel {k}": v for name in ("mean", "std") for k, v in enumerate(record[name][:4])},
                next=[next_command("fit", "--config", "fashion_mnist/latent", "--data.path", output)],
            )
            folder.publish(lambda stage: _write(folder.work, stage, record, images, codec), report)
        return folder.report


def open_any(name: str) -> "Autoencoder":
    """The autoencoder of a checkpoint or run of this package, of a folder, or of the hub.

    Raises:
        ValueError: there is none.
    """
    from ..autoencoders import open_autoencoder
    from ..checkpoints.io import read_hashed
    from ..checkpoints.loading import from_content
    from ..training import AutoencoderModule

    path = Path(name).expanduser()
    if not path.is_file() and not (path / "checkpoints").is_dir() and not [*path.glob("*.ckpt")]:
        return open_autoencoder(name)
    content, _ = read_hashed(path)
    model, _ = from_content(content, path, "ema")
    if not isinstance(model, AutoencoderModule):
        raise ValueError(
            f"autoencoder {name} is a {type(model).__name__}: train one by `fit --config fashion_mnist/autoencoder`"
        )
    return model.autoencoder.eval().requires_grad_(False)


def _placed(spec: dict[str, Any], images: DataModule) -> dict[str, Any]:
    """A description of data with paths that hold in any working directory."""
    options = {
        name: _absolute(str(value)) if name in images.paths and value is not None else value
        for name, value in spec["init_args"].items()
    }
    return {**spec, "init_args": options}


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _encode(
    work: Path,
    split: str,
    images: DataModule,
    codec: "Autoencoder",
    shape: tuple[int, ...],
    mirrors: bool,
    dtype: str,
    batch_size: int,
) -> None:
    """Encode a split into files of the folder `work`, from where an interrupted call stopped."""
    import numpy as np
    import torch
    from tqdm.auto import tqdm

    from ..data.latent_files import file_name
    from ..runtime.reading import read_json
    from ..runtime.storage import write_json

    note, source = work / f"{split}.done.json", images.part(split)
    n = len(source)
    done = int(read_json(note, dict)["done"]) if note.is_file() else 0
    first = codec.encode(next(images.batches("train", 1))["x"].to(_device(codec)))
    views, moments = 1 + mirrors, 1 if not first.std.any() else 2
    if (got := tuple(first.mean.shape[1:])) != shape:
        name = codec.name or type(codec).__name__
        raise ValueError(f"autoencoder {name}: gave latents of {got}, expected {shape}")
    shapes = {"x": ((n, views, moments, *shape), np.dtype(dtype))}
    for name, condition in images.conditions.items():
        shapes[name] = ((n, *condition.shape), np.dtype("int64" if condition.kind == "label" else "float32"))
    files: dict[str, NDArray[Any]] = {
        name: np.lib.format.open_memmap(
            work / file_name(split, name), "r+" if done else "w+", *(() if done else (kind, size))
        )
        for name, (size, kind) in shapes.items()
    }
    begins = range(done, n, batch_size)
    for k, begin in enumerate(tqdm(begins, f"encoding {split}", unit="batch", delay=1, dynamic_ncols=True)):
        end = min(begin + batch_size, n)
        batch = images.on_after_batch_transfer(source.__getitems__(torch.arange(begin, end)), 0)
        x = batch["x"].to(_device(codec))
        for view, seen in enumerate((x, x.flip(-1))[:views]):
            encoded = torch.stack(codec.encode(seen)[:moments], 1).cpu().numpy().astype(dtype)
            if not np.isfinite(encoded).all():
                raise ValueError(f"a latent of {split} is not finite as {dtype}. Fix: give --dtype float32")
            files["x"][begin:end, view] = encoded
        for name in images.conditions:
            files[name][begin:end] = batch[name].numpy()
        if k % _SAVED_EVERY == _SAVED_EVERY - 1 or end == n:
            for array in files.values():
                array.flush()  # type: ignore[attr-defined]
            write_json(note, {"done": end})


def _device(codec: "Autoencoder") -> Any:
    import torch

    return next((tensor.device for tensor in codec.state_dict().values()), torch.device("cpu"))


def _record(images: DataModule, work: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What latents.json says of the files in a folder."""
    import hashlib

    from .. import __version__
    from ..conditions import to_plain
    from ..data.latent_files import Rows, file_name, statistics

    names = {split: {name: file_name(split, name) for name in ("x", *images.conditions)} for split in sizes}
    sha256 = {}
    for file in sorted(file for files in names.values() for file in files.values()):
        with (work / file).open("rb") as opened:
            sha256[file] = hashlib.file_digest(opened, "sha256").hexdigest()
    train = Rows({"x": work / names["train"]["x"]})
    mean, std = statistics(train)
    if min(std) <= 0:
        raise ValueError(f"channel {std.index(min(std))} of the latents is constant: the autoencoder does not use it")
    _, views, moments, *_ = train.arrays["x"].shape
    return {
        "version": __version__,
        "image_shape": list(images.shape),
        "levels": images.units.levels,
        "conditions": to_plain(images.conditions),
        "class_counts": images.class_counts,
        "mean": mean,
        "std": std,
        "views": views,
        "moments": moments,
        "sha256": sha256,
    }


def _write(work: Path, stage: Path, record: Mapping[str, Any], images: DataModule, codec: "Autoencoder") -> list[Path]:
    """Put the files of `work` into the folder `stage`, with what says what they are; the files in order."""
    import os
    import shutil

    import torch

    from ..autoencoders import save_autoencoder
    from ..runtime.storage import write_json

    for name in record["sha256"]:
        try:
            os.link(work / name, stage / name)  # they stay in `work`, should the call be interrupted now
        except OSError:
            shutil.copyfile(work / name, stage / name)
    torch.save(images.state_dict(), stage / "original.pt")
    (stage / "autoencoder").mkdir()
    save_autoencoder(codec.cpu(), stage / "autoencoder")
    write_json(stage / "latents.json", record)
    return [stage / "latents.json", *(stage / name for name in record["sha256"]), stage / "autoencoder"]
