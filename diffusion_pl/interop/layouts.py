"""The blocks of our U-Nets in the order in which they run, which is that of every other implementation."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Part(NamedTuple):
    """A block of a U-Net.

    name: of the module in our network;  kind: res, attention, resample (what halves or doubles);
    way: down, middle or up;  level: 0 has the height and width of the image;  number: of the residual block within
    the level that it belongs to, 0, 1, …;  row: of the blocks of its way that run one after the other, 0, 1, …
    """

    name: str
    kind: str
    way: str
    level: int
    number: int
    row: int


def unet(num_res_blocks: int, attends: Sequence[bool], every_block: bool) -> Iterator[Part]:
    """The blocks of `networks.UNet` between its stem and its last norm.

    Args:
        num_res_blocks: of a level.
        attends: which levels attend.
        every_block: whether they do so after every block on the way up, or once.
    """
    last, row = len(attends) - 1, 0
    for level, attending in enumerate(attends):
        for number in range(num_res_blocks):
            yield Part(f"down.{row}.0", "res", "down", level, number, row)
            if attending:
                yield Part(f"down.{row}.1", "attention", "down", level, number, row)
            row += 1
        if level < last:
            yield Part(f"down.{row}.0", "resample", "down", level, num_res_blocks, row)
            row += 1
    for row, kind in enumerate(("res", "attention", "res")):
        yield Part(f"middle.{row}", kind, "middle", last, row, row)
    row = 0
    for level in reversed(range(len(attends))):
        for number in range(num_res_blocks + 1):
            place, end = 1, number == num_res_blocks
            yield Part(f"up.{row}.0", "res", "up", level, number, row)
            if attends[level] and (every_block or end):
                yield Part(f"up.{row}.1", "attention", "up", level, number, row)
                place = 2
            if end and level > 0:
                yield Part(f"up.{row}.{place}", "resample", "up", level, number, row)
            row += 1


#: The layers of a block in our networks, which a format's table gives its own names.
RES = ("norm_1", "conv_1", "time", "norm_2", "conv_2", "shortcut")
ATTENTION = ("norm", "query", "key", "value", "output")
