"""The encoder of the U-Net with a classification head."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..conditions import Conditions
from . import resnet
from .conditioning import predicted_classes
from .embeddings import Embedding
from .layers import attending, check_options, check_sizes, factors
from .resnet import AttentionBlock, Downsample, ResBlock, conv, group_norm, linear
from .unet import TimeFeatures


class UNetEncoder(nn.Module):
    """Logits of noisy images: the levels of `UNet` on the way down, attention, mean over the positions.

    Reference: Dhariwal & Nichol, arXiv 2105.05233, Sec. 4.2 (there with attention pooling).

    Args:
        shape: Shape of one example, (C, L), (C, H, W) or (C, D, H, W); sizes divisible by 2 for each level after the
            first, or 1.
        conditions: Of the data; the logits are of the classes of ``label``, and others are ignored.
        nf, ch_mult, num_res_blocks, attn_resolutions, dropout, activation, time_embedding: See UNet.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Conditions,
        nf: int = 64,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        activation: resnet.Activation = "swish",
        time_embedding: Callable[[int], Embedding] | None = None,
    ) -> None:
        super().__init__()
        check_options("UNetEncoder", nf, ch_mult, num_res_blocks, dropout)
        classes = predicted_classes("UNetEncoder", conditions)
        strides = factors("UNetEncoder", shape, 2)
        self.factors = tuple(stride ** (len(ch_mult) - 1) for stride in strides)
        check_sizes("UNetEncoder", shape, self.factors)
        attends = attending("UNetEncoder", shape, strides, len(ch_mult), attn_resolutions)
        axes = len(strides)
        self.time = TimeFeatures(nf, time_embedding, activation)
        self.stem = conv(shape[0], nf, axes=axes)
        self.blocks, c = resnet.Sequence(), nf
        for level, mult in enumerate(ch_mult):
            for _ in range(num_res_blocks):
                self.blocks.append(ResBlock(c, nf * mult, 4 * nf, activation, dropout, axes=axes))
                c = nf * mult
                if attends[level]:
                    self.blocks.append(AttentionBlock(c, axes=axes))
            if level < len(ch_mult) - 1:
                self.blocks.append(Downsample(c, with_conv=True, strides=strides))
        self.blocks.append(AttentionBlock(c, axes=axes))
        self.norm, self.act = group_norm(c), resnet.ACTIVATIONS[activation]
        self.output = linear(c, classes)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Logits: (B, classes).

        Args:
            x: Scaled noisy data, (B, C, *sizes).
            c_noise: Noise level, (B,).
        """
        check_sizes("UNetEncoder", x.shape[1:], self.factors)
        h = self.blocks(self.stem(x), self.time(c_noise))
        logits: Tensor = self.output(self.act(self.norm(h)).flatten(2).mean(2))
        return logits
