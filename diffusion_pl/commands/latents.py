"""python -m diffusion_pl latents: encode a data set of images once, for models that are trained on latents."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data import DataModule
from ..runtime.bounds import check_counts
from ..runtime.output import Report, next_command

if TYPE_CHECKING:
    from ..autoencoders import Autoencoder

_ONLINE = 10_000  # training images of which statistics are


def latents(
    data: Callable[[], DataModule],
    autoencoder: str,
    output: Path = Path("latents"),
    mirrors: bool = False,
    dtype: Literal["float16", "float32"] | None = None,
    online: bool = False,
    statistics_from: int | None = None,
    scale: float | None = None,
    batch_size: int = 64,
    accelerator: str = "auto",
) -> Report | None:
    """Encode all images of a data set by an autoencoder, and save the moments of their latents.

    `fit --data Latents --data.path FOLDER` trains on them; samples are decoded by the autoencoder, a copy of which is
    in the folder.  With --online only the mean and standard deviation of each channel are computed, of some images, and
    training encodes the images itself, for latents that are too large to be stored.  A call that was interrupted
    continues where it stopped when it is repeated.

    Args:
        data: Data module of the images, such as FashionMNIST, with its options, such as --data.path FOLDER.
        autoencoder: Folder or hub name of an autoencoder of diffusers (AutoencoderKL, AutoencoderTiny, AutoencoderDC,
            VQModel), or checkpoint or run of an own one.
        output: Folder for the files, new or empty.
        mirrors: Mirror images encoded too, from which training then draws with probability 1/2.
        dtype: Number format of the files: float16 or float32; None: float16.
        online: Statistics stored alone, and images encoded in training, for latents that are too large to be stored.
        statistics_from: Number of training images that --online encodes for its statistics, spread over all of them;
            at least 2, None: 10,000, or all if they are fewer.
        scale: Number by which latents are multiplied, such as 0.18215 for the autoencoders of Stable Diffusion,
            positive, in place of the mean and standard deviation of each channel; None: these, so that every channel
            has mean 0 and standard deviation 1.
        batch_size: Number of images encoded at a time, at least 1.
        accelerator: Kind of device: "cpu", "cuda", "mps", or "auto" (cuda where there is one, else cpu).
    """
    check_counts(batch_size=batch_size)
    _check(dtype, online, statistics_from, scale)
    from ..autoencoders import weights_hash
    from ..data.base import SPLITS
    from ..runtime.devices import device_of
    from ..runtime.errors import quiet
    from ..runtime.output_folder import OutputFolder
    from ..training.saving import described
    from .encoding import Encoding

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
    call: dict[str, Any] = {"data": spec, "autoencoder": encoder, "mirrors": mirrors}
    call |= {"dtype": dtype or "float16", "splits": sizes}
    if online:
        used = min(statistics_from or _ONLINE, sizes["train"])
        call |= {"dtype": "float32", "online": True, "statistics_from": used}
    if scale is not None:
        call["scale"] = scale
    encoding = Encoding(images, codec.to(device_of(accelerator)), shape, 1 + mirrors, call["dtype"], batch_size)
    with OutputFolder(output, call) as folder:
        if folder.published is None:
            made = encoding.measured(folder.work, used) if online else encoding.stored(folder.work)
            record = {**_scaled(made, scale), **call, "shape": list(shape)}
            of, by = f"{sum(sizes.values()):,} images of {type(images).__name__}", "fit will encode as latents of"
            report = Report(
                done=f"{of}, which {by} {shape}; statistics of {used:,}" if online else f"{of} as latents of {shape}",
                facts={f"{name} of channel {k}": v for name in ("mean", "std") for k, v in enumerate(record[name][:4])},
                next=[next_command("fit", "--config", "fashion_mnist/latent", "--data.path", output)],
            )
            folder.publish(lambda stage: encoding.write(folder.work, stage, record), report)
        return folder.report


def _scaled(record: dict[str, Any], scale: float | None) -> dict[str, Any]:
    """A record whose latents are multiplied by a number; the mean square that they then have is noted."""
    if scale is None:
        return record
    pairs = zip(record["mean"], record["std"], strict=True)
    squares = [scale**2 * (mean**2 + std**2) for mean, std in pairs]
    channels = len(squares)
    second_moment = sum(squares) / channels
    return {**record, "mean": [0.0] * channels, "std": [1 / scale] * channels, "second_moment": second_moment}


def _check(dtype: str | None, online: bool, statistics_from: int | None, scale: float | None) -> None:
    """Raise ValueError for options that do not go together."""
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if statistics_from is not None and not online:
        raise ValueError("--statistics_from is for --online; stored latents have statistics of all. Fix: remove it")
    if statistics_from is not None and statistics_from < 2:
        raise ValueError(f"statistics_from must be at least 2, got {statistics_from}")
    if dtype is not None and online:
        raise ValueError("--dtype is of stored latents, and --online stores none. Fix: remove one of them")


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
