"""The network of score_sde_pytorch from its one list, all_modules.N, whose blocks stand in the order in which they run.

The list shows nf, widths and depth of the levels, where it attends, the kind of blocks and of the embedding, whether it
resamples with convolutions, both pyramids and how the input's is joined.  The reader asks for what it does not show.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .layouts import unet

LIST = "all_modules."
#: Kinds that halve or double: 3x3 convolution, the same with a filter, no tensors at all.
RESAMPLERS = ("resample", "fir", "")


class Block(NamedTuple):
    """An entry of all_modules.

    kind: res, biggan, attention, combine, fourier, norm, dense, conv, one of RESAMPLERS, or "unknown";  taken, width:
    channels that a residual block takes and gives;  resamples: a BigGAN block that halves or doubles.
    """

    kind: str
    taken: int = 0
    width: int = 0
    resamples: bool = False


class Layout(NamedTuple):
    """The network that a list is of.

    blocks: the list;  nf, channels, ch_mult, depth;  attends: by level;  biggan: kind of residual blocks;  fourier,
    conditional: of the noise level;  progressive_input, progressive: the pyramids;  doubled: the input is concatenated,
    not added;  convolves: resamples with convolutions;  filters: and with FIR filters, None: not shown.
    """

    blocks: list[Block]
    nf: int
    channels: int
    ch_mult: list[int]
    depth: int
    attends: list[bool]
    biggan: bool
    fourier: bool
    conditional: bool
    progressive_input: str
    progressive: str
    doubled: bool
    convolves: bool
    filters: bool | None

    @property
    def plain(self) -> bool:
        """Whether it can be the network of DDPM, without any of NCSN++'s options."""
        extras = self.biggan, self.fourier, self.filters, self.progressive_input != "none", self.progressive != "none"
        return not any(extras)


def layout(state: Mapping[str, Tensor], path: Path, prefix: str) -> Layout:
    """What the tensors of a network show.

    Args:
        state: named all_modules.N.…
        path: the file, for messages.
        prefix: of the names in the file, for messages.

    Raises:
        ValueError: they are of no DDPM, DDPM++ or NCSN++.
    """
    blocks = _blocks(state, path)
    kinds = [block.kind for block in blocks]
    stem = kinds.index("conv") if "conv" in kinds else 0
    fourier = kinds[:1] == ["fourier"]
    if kinds[fourier:stem] not in ([], ["dense", "dense"]) or kinds[stem] != "conv":
        raise ValueError(f"{path}: {prefix}{LIST}0 … are not the beginning of a DDPM, DDPM++ or NCSN++")
    biggan = "biggan" in kinds
    nf, channels = state[f"{LIST}{stem}.weight"].shape[:2]
    res = [i for i, b in enumerate(blocks) if b.kind in ("res", "biggan") and not b.resamples]
    down = next((i for i in range(stem, len(blocks)) if _between(blocks[i], biggan)), None)
    depth = (len(res) - 3) // 2 if down is None else sum(i < down for i in res)
    levels, rest = divmod(len(res) - 2, 2 * depth + 1)
    if depth < 1 or levels < 1 or rest:
        raise ValueError(f"{path}: {len(res)} residual blocks, {depth} before the first that halves, are no U-Net")
    firsts = [res[level * depth] for level in range(levels)]
    middle = res[levels * depth]
    below, above = kinds[:middle], blocks[middle:]
    after = kinds[down + 1] if down is not None else "res"
    rises = [b for b in above if b.kind in RESAMPLERS]
    norms = [block.kind for block in above].count("norm")
    convolutions = {kind for kind in kinds if kind in ("resample", "fir")}
    architecture = Layout(
        blocks,
        nf,
        channels,
        [blocks[i].width // nf for i in firsts],
        depth,
        [kinds[i + 1] == "attention" for i in firsts],
        biggan,
        fourier,
        stem > fourier,
        "input_skip" if "combine" in below else "residual" if after in RESAMPLERS else "none",
        "residual"
        if len(rises) > (0 if biggan else levels - 1) or norms > levels
        else "output_skip"
        if norms == levels > 1
        else "none",
        levels > 1 and blocks[firsts[1]].taken == 2 * blocks[firsts[0]].width,
        biggan or "" not in kinds,
        "fir" in convolutions if convolutions else None,
    )
    expected = list(modules(architecture, architecture.plain))
    for number, (block, (_, kind)) in enumerate(zip(blocks, expected, strict=False)):
        if not (block.kind == kind or (kind == "resample" and block.kind in RESAMPLERS)):
            raise ValueError(f"{path}: {prefix}{LIST}{number} is a block of kind {block.kind!r}, expected {kind!r}")
    if len(blocks) != len(expected):
        raise ValueError(f"{path}: {len(blocks)} modules, where a network of its levels has {len(expected)}")
    if any(mult < 1 or mult * nf != blocks[i].width for mult, i in zip(architecture.ch_mult, firsts, strict=True)):
        raise ValueError(f"{path}: levels of {[blocks[i].width for i in firsts]} channels are no multiples of nf {nf}")
    return architecture


def _between(block: Block, biggan: bool) -> bool:
    return block.resamples if biggan else block.kind in RESAMPLERS


def _blocks(state: Mapping[str, Tensor], path: Path) -> list[Block]:
    """The entries of all_modules, those without tensors among them."""
    tensors: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = re.fullmatch(rf"{LIST}(\d+)\.(.+)", name)
        if match:
            tensors.setdefault(int(match[1]), {})[match[2]] = tensor
    length = max(tensors, default=-1) + 1
    if length > 2 * len(tensors):
        raise ValueError(f"{path}: {LIST}{length - 1} is the last of only {len(tensors)} modules with tensors")
    biggan = any("GroupNorm_1.weight" in block and "Conv_2.weight" in block for block in tensors.values())
    return [_block(tensors.get(number, {}), biggan) for number in range(length)]


def _block(tensors: Mapping[str, Tensor], biggan: bool) -> Block:
    if "GroupNorm_1.weight" in tensors and "Conv_0.weight" in tensors and tensors["Conv_0.weight"].ndim == 4:
        width, taken = tensors["Conv_0.weight"].shape[:2]
        # A block that halves or doubles height and width has a shortcut, though its channels stay.
        return Block("biggan" if biggan else "res", taken, width, width == taken and "Conv_2.weight" in tensors)
    if "NIN_3.W" in tensors:
        return Block("attention")
    if "Conv_0.weight" in tensors:
        return Block("combine" if tensors["Conv_0.weight"].shape[-1:] == (1,) else "resample")
    if "Conv2d_0.weight" in tensors:
        return Block("fir")
    if "W" in tensors:
        return Block("fourier")
    if "weight" in tensors:
        return Block({1: "norm", 2: "dense", 4: "conv"}.get(tensors["weight"].ndim, "unknown"))
    return Block("unknown" if tensors else "")


def modules(architecture: Layout, ddpm: bool) -> Iterator[tuple[str, str]]:
    """The module of ours ("" for none) and the kind of each block of such a network: UNet's for DDPM, else NCSNpp's."""
    if architecture.fourier:
        yield "time.embedding" if architecture.conditional else "", "fourier"
    if architecture.conditional:
        yield from (("time.dense_1", "dense"), ("time.dense_2", "dense"))
    yield "stem", "conv"
    if ddpm:
        yield from (
            (part.name, part.kind) for part in unet(architecture.depth, architecture.attends, every_block=False)
        )
    else:
        yield from _ncsnpp(architecture, architecture.attends)
    if architecture.progressive != "output_skip":
        yield from (("norm", "norm"), ("output", "conv"))


def _ncsnpp(architecture: Layout, attends: Sequence[bool]) -> Iterator[tuple[str, str]]:
    """The blocks of `networks.NCSNpp` between stem and last norm."""
    last, depth = len(attends) - 1, architecture.depth
    res, between = ("biggan", "biggan") if architecture.biggan else ("res", "resample")
    for level, attending in enumerate(attends):
        for number in range(depth):
            yield f"down.{level}.{number}.0", res
            if attending:
                yield f"down.{level}.{number}.1", "attention"
        if level < last:
            yield f"down.{level}.{depth}.0", between
            if architecture.progressive_input != "none":
                yield (
                    f"input_pyramid.{level}",
                    "combine" if architecture.progressive_input == "input_skip" else "resample",
                )
    yield from (("middle.0", res), ("middle.1", "attention"), ("middle.2", res))
    for place, attending in enumerate(reversed(attends)):
        for number in range(depth + 1):
            yield f"up.{place}.{number}.0", res
        if attending:
            yield f"up.{place}.{depth}.1", "attention"
        if architecture.progressive == "output_skip" or (architecture.progressive == "residual" and place == 0):
            yield from ((f"output_pyramid.{place}.0", "norm"), (f"output_pyramid.{place}.1", "conv"))
        elif architecture.progressive == "residual":
            yield f"output_pyramid.{place}", "resample"
        if place < last:
            yield f"up.{place}.{depth + 1}.0", between
