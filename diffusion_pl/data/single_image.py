"""Random crops of one image."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .decoding import Layout, Mode, Size, check_size, look, mode_of, to_array
from .images import Examples, Format, Images
from .loader import Batch
from .opening import Unreadable, opened

if TYPE_CHECKING:
    from PIL.Image import Image


class Picture(Images):
    """Crops of one image.  (The French demonstration of DDPM trains on one.)

    Crop i of a split is where (seed, split, i) puts it; validation sees crops that training does not.

    Args:
        path: The image; None: the photograph of a flower that comes with scikit-learn.
        size: Height and width of a crop, or one number for both.
        shorter_side: Length to which the image's shorter side is resized first, so that a crop holds more of it; None:
            as it is.
        crops: How many different crops training has; validation has a tenth of that.
        mode: L (grey), RGB or RGBA to convert to; None: as it is.
        batch_size: Crops per batch, over all processes.
        kwargs: Of `Images`: horizontal_flip, repeats, seed.
    """

    grows = False

    def __init__(
        self,
        path: str | None = None,
        size: Size = 32,
        shorter_side: int | None = 128,
        crops: int = 10_000,
        mode: Mode | None = None,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        source = "the flower of scikit-learn" if path is None else str(path)
        super().__init__(
            source, batch_size=batch_size, augment=0.0, val_fraction=0.0, test_fraction=0.0, workers=0, **kwargs
        )
        window = check_size("Picture", size)
        if window is None:
            raise ValueError("Picture: size is the height and width of a crop and must be given")
        if crops < 10 or (shorter_side is not None and shorter_side < 1):
            raise ValueError(
                f"Picture: crops must be at least 10 and shorter_side at least 1, got {crops} and {shorter_side}"
            )
        self.path, self.window, self.shorter_side, self.crops = path, window, shorter_side, crops
        self.layout = Layout(mode)
        self._whole: Tensor | None = None

    def whole(self) -> Tensor:
        """The image that is cropped: (C, H, W), integers."""
        if self._whole is None:
            layout = self.layout
            image = _flower() if self.path is None else _open(Path(self.path).expanduser())
            if self.shorter_side is not None:
                seen = look(image)
                scale = self.shorter_side / min(seen.height, seen.width)
                layout = layout._replace(size=(round(scale * seen.height), round(scale * seen.width)))
            array = torch.from_numpy(to_array(image, layout, self.source).copy())
            if array.shape[1] < self.window[0] or array.shape[2] < self.window[1]:
                raise ValueError(
                    f"{self.source}: is {array.shape[1]}x{array.shape[2]} (height x width), smaller than a crop of "
                    f"{self.window[0]}x{self.window[1]}: lower size or raise shorter_side"
                )
            self._whole = array
        return self._whole

    def inspect(self) -> Format:
        image = _flower() if self.path is None else _open(Path(self.path).expanduser())
        channels, levels = mode_of(look(image), self.layout, self.source)
        return Format((channels, *self.window), levels=levels)

    def examples(self) -> Examples:
        whole = self.whole()
        return Examples(Crops(whole, self.window, self.crops, 2 * self.seed))

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        held_out = Crops(self.whole(), self.window, self.crops // 10, 2 * self.seed + 1)
        self._splits = self.splits[0], held_out, held_out


class Crops:
    """Crops of an image at fixed random places.

    Args:
        whole: (C, H, W).
        size: Height and width of a crop.
        count: How many.
        seed: Chooses the places.
    """

    def __init__(self, whole: Tensor, size: tuple[int, int], count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        down, across = (full - side + 1 for full, side in zip(whole.shape[1:], size, strict=True))
        self.top = torch.randint(down, (count,), generator=generator)
        self.left = torch.randint(across, (count,), generator=generator)
        self.windows = whole.unfold(1, size[0], 1).unfold(2, size[1], 1)  # (C, down, across, h, w), no copy

    def __len__(self) -> int:
        return len(self.top)

    def __getitems__(self, indices: Tensor) -> Batch:
        return {"x": self.windows[:, self.top[indices], self.left[indices]].transpose(0, 1).contiguous()}


def _flower() -> "Image":
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg"))


def _open(path: Path) -> "Image":
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file. Fix: give --data.path FILE")
    try:
        return opened(path)
    except Unreadable as error:
        raise ValueError(f"{path}: cannot be read as an image ({str(error)[:100]}): set path to another") from None
