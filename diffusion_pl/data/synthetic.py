"""Stand-ins for the data sets of the VP-SDE seminar: small, drawn by program, in the file formats of the real ones.

    python -m diffusion_pl.data.synthetic NAME [--root data] [--count 500] [--seed 0]

They are for trying things without the data. A note next to each says that it is not real, and runs on it say so.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .stand_ins import NOTE, note_of

Pixels = NDArray[np.uint8]


def mnist(root: Path, count: int, random: Generator) -> Path:
    """The 8x8 digits of scikit-learn, enlarged and moved about, in MNIST's files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()

    def draw(i: int) -> Pixels:
        small = Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8))
        large = np.zeros((28, 28), np.uint8)
        top, left = random.integers(2, 7, 2)
        large[top : top + 20, left : left + 20] = np.asarray(small.resize((20, 20), Image.Resampling.BICUBIC))
        return large

    return _idx(root / "MNIST" / "raw", count, random, lambda i: (draw(i), int(digits.target[i])), len(digits.target))


def fashion_mnist(root: Path, count: int, random: Generator) -> Path:
    """Ten silhouettes of clothing, in Fashion-MNIST's files."""
    outlines = [
        [(4, 4), (9, 3), (18, 3), (23, 4), (26, 12), (21, 13), (21, 25), (6, 25), (6, 13), (1, 12)],  # T-shirt
        [(9, 2), (19, 2), (21, 26), (16, 26), (14, 8), (12, 26), (7, 26)],  # trousers
        [(8, 3), (19, 3), (26, 22), (22, 23), (20, 12), (20, 25), (7, 25), (7, 12), (5, 23), (1, 22)],  # pullover
        [(11, 2), (17, 2), (17, 10), (21, 26), (7, 26), (11, 10)],  # dress
        [(8, 2), (13, 5), (19, 2), (25, 24), (20, 25), (20, 12), (20, 26), (7, 26), (7, 12), (7, 25), (2, 24)],  # coat
        [(2, 17), (14, 13), (26, 17), (26, 20), (2, 20)],  # sandal
        [(6, 3), (14, 6), (21, 3), (27, 20), (22, 21), (21, 26), (6, 26), (5, 21), (0, 20)],  # shirt
        [(2, 14), (8, 13), (16, 17), (26, 18), (26, 21), (2, 21)],  # sneaker
        [(5, 10), (9, 10), (10, 5), (18, 5), (19, 10), (23, 10), (25, 24), (3, 24)],  # bag
        [(5, 4), (14, 4), (14, 15), (25, 19), (25, 24), (5, 24)],  # ankle boot
    ]

    def draw(kind: int) -> tuple[Pixels, int]:
        from PIL import Image, ImageDraw

        image = Image.new("L", (28, 28))
        shifted = [(x + random.normal(0, 0.7), y + random.normal(0, 0.7)) for x, y in outlines[kind]]
        ImageDraw.Draw(image).polygon(shifted, fill=int(random.integers(110, 250)))
        return np.asarray(image), kind

    return _idx(root / "FashionMNIST" / "raw", count, random, draw, 10)


def shoes(root: Path, count: int, random: Generator) -> Path:
    """Boots and shoes on white, 64x64, in one HDF5 file."""
    import h5py

    path = root / "shoes_64.hdf5"
    _refuse(path)
    with h5py.File(path, "w") as file:
        file["imgs"] = np.stack([np.asarray(_shoe(random)) for _ in range(count)])
    return path


def celeba_male(root: Path, count: int, random: Generator) -> Path:
    """Faces, 178x218, in a folder of PNG files."""
    return _files(root / "celeba_male", count, lambda: _face(random, (178, 218), eyes=0.05))


def anime(root: Path, count: int, random: Generator) -> Path:
    """Faces with large eyes, 64x64, in a folder of PNG files."""
    return _files(root / "anime", count, lambda: _face(random, (64, 64), eyes=0.11))


def church(root: Path, count: int, random: Generator) -> Path:
    """Houses with a steeple, 64x64, in one npz file."""
    path = root / "church.npz"
    _refuse(path)
    np.savez(path, np.stack([np.asarray(_church(random)) for _ in range(count)]))
    return path


MAKERS: dict[str, Callable[[Path, int, Generator], Path]] = {
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "shoes": shoes,
    "celeba_male": celeba_male,
    "anime": anime,
    "church": church,
}


def _files(folder: Path, count: int, draw: Callable[[], Any]) -> Path:
    _refuse(folder)
    folder.mkdir(parents=True)
    for i in range(count):
        draw().save(folder / f"{i:05d}.png")
    return folder


def _idx(folder: Path, count: int, random: Generator, draw: Callable[[int], tuple[Pixels, int]], choices: int) -> Path:
    """Write training and test files in the format of MNIST, as torchvision unpacks them."""
    _refuse(folder)
    folder.mkdir(parents=True)
    for name, n in (("train", count), ("t10k", max(10, count // 5))):
        drawn = [draw(i % choices) for i in random.permutation(max(n, choices))[:n]]
        x = np.stack([image for image, _ in drawn])
        y = np.array([label for _, label in drawn], np.uint8)
        header = np.array([0x803, n, 28, 28], ">i4").tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + x.astype(np.uint8).tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(np.array([0x801, n], ">i4").tobytes() + y.tobytes())
    return folder


def _refuse(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists already and is not overwritten: remove it, or name another --root")
    path.parent.mkdir(parents=True, exist_ok=True)


def _color(random: Generator, low: int = 30, high: int = 220) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in random.integers(low, high, 3))
    return r, g, b


def _canvas(size: tuple[int, int], color: tuple[int, int, int]) -> tuple[Any, Any, Callable[[], Any]]:
    """An image of four times the size, its pen, and how to shrink it, which smooths the edges."""
    from PIL import Image, ImageDraw

    large = Image.new("RGB", (4 * size[0], 4 * size[1]), color)
    return large, ImageDraw.Draw(large), lambda: large.resize(size, Image.Resampling.BOX)


def _shoe(random: Generator) -> Any:
    _, pen, done = _canvas((64, 64), (255, 255, 255))
    color, sole = _color(random, 20, 200), _color(random, 0, 90)
    shaft = random.uniform(60, 130)  # from a shoe to a boot
    heel, toe = random.uniform(36, 52), random.uniform(205, 232)
    pen.polygon(
        [(heel, 200 - shaft), (heel + 66, 200 - shaft), (heel + 78, 150), (toe - 12, 172), (toe, 200), (heel, 200)],
        color,
    )
    pen.ellipse((toe - 50, 164, toe + 2, 214), fill=color)
    pen.rectangle((heel, 200, toe, 200 + random.uniform(8, 16)), fill=sole)
    pen.rectangle((heel, 200, heel + random.uniform(24, 40), 200 + random.uniform(14, 30)), fill=sole)
    for k in range(int(random.integers(0, 4))):
        pen.line((heel + 70, 192 - shaft + 18 * k, heel + 92, 198 - shaft + 18 * k), fill=(240, 240, 240), width=5)
    return done()


def _face(random: Generator, size: tuple[int, int], eyes: float) -> Any:
    _, pen, done = _canvas(size, _color(random, 60, 240))
    w, h = 4 * size[0], 4 * size[1]
    x, y = w * random.uniform(0.45, 0.55), h * random.uniform(0.48, 0.56)
    a, b = w * random.uniform(0.24, 0.3), h * random.uniform(0.27, 0.33)
    tone = random.uniform(0.5, 1.0)
    skin = (int(255 * tone), int(205 * tone), int(170 * tone))
    hair = _color(random, 10, 200)
    pen.ellipse((x - 1.2 * a, y - 1.3 * b, x + 1.2 * a, y + random.uniform(0.1, 0.9) * b), fill=hair)
    pen.ellipse((x - a, y - b, x + a, y + b), fill=skin)
    pen.pieslice((x - a, y - 1.05 * b, x + a, y + 0.2 * b), 180, 360, fill=hair)
    r = eyes * w
    iris = _color(random, 20, 160)
    for side in (-1, 1):
        cx, cy = x + side * 0.45 * a, y + 0.02 * b
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(250, 250, 250))
        pen.ellipse((cx - 0.6 * r, cy - 0.7 * r, cx + 0.6 * r, cy + 0.7 * r), fill=iris)
    smile = random.uniform(0.1, 0.3) * b
    pen.arc(
        (x - 0.4 * a, y + 0.4 * b - smile, x + 0.4 * a, y + 0.4 * b + smile), 20, 160, fill=(150, 40, 40), width=w // 50
    )
    return done()


def _church(random: Generator) -> Any:
    _, pen, done = _canvas((64, 64), (int(random.integers(120, 200)), int(random.integers(170, 220)), 250))
    ground = random.uniform(196, 226)
    wall, roof = _color(random, 120, 235), _color(random, 40, 140)
    pen.rectangle((0, ground, 256, 256), fill=(int(random.integers(50, 110)), int(random.integers(110, 160)), 60))
    left, width, height = random.uniform(30, 70), random.uniform(100, 140), random.uniform(50, 80)
    pen.rectangle((left, ground - height, left + width, ground), fill=wall)
    pen.polygon(
        [(left - 8, ground - height), (left + width / 2, ground - height - 44), (left + width + 8, ground - height)],
        roof,
    )
    tower = left if random.random() < 0.5 else left + width - 36
    top = ground - height - random.uniform(40, 70)
    pen.rectangle((tower, top, tower + 36, ground), fill=tuple(int(0.92 * c) for c in wall))
    pen.polygon([(tower - 5, top), (tower + 18, top - random.uniform(40, 60)), (tower + 41, top)], roof)
    for k in range(3):
        pen.ellipse((left + 14 + 36 * k, ground - 42, left + 26 + 36 * k, ground - 14), fill=(60, 70, 110))
    return done()


def main(args: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser("diffusion_pl.data.synthetic", description=summary + rest.splitlines()[-1])
    parser.add_argument("name", choices=MAKERS, help="which data set to stand in for")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder for the files (default: data)")
    parser.add_argument("--count", type=int, default=500, help="how many images (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings (default: 0)")
    chosen = parser.parse_args(args)
    try:
        if chosen.count < 10 or chosen.seed < 0:
            raise ValueError(f"--count must be at least 10 and --seed at least 0, got {chosen.count} and {chosen.seed}")
        path = MAKERS[chosen.name](chosen.root, chosen.count, np.random.default_rng(chosen.seed))
        note_of(path).write_text(NOTE.format(name=chosen.name), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"diffusion_pl.data.synthetic: error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {chosen.count} drawings in place of {chosen.name}; not the real data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
