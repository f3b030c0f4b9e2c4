"""Attention of places to the tokens of sequence conditions.

q = W_q norm(x),   k, v = W_kv tokens,   y = W_o softmax(q kᵀ / √d) v,   W_o = 0 at first
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class Context(NamedTuple):
    """The tokens of all sequence conditions of a batch.

    tokens: (B, M, width);  given: (B, M), bool, at least one of an example's: which are attended to.
    """

    tokens: Tensor
    given: Tensor

    def mean(self) -> Tensor:
        """Mean over the given tokens: (B, width)."""
        weight = self.given.to(self.tokens.dtype)
        return (weight / weight.sum(1, keepdim=True)).unsqueeze(1).matmul(self.tokens).squeeze(1)


class CrossAttention(nn.Module):
    """What is added to x for the tokens that its places attend to; nothing at first.

    Reference: Vaswani et al., arXiv 1706.03762, Sec. 3.2; as in Rombach et al., arXiv 2112.10752, Eq. 3.

    Args:
        channels: Of x.
        width: Of a token.
        heads: Their number, a divisor of the channels.
    """

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(width, 2 * channels)
        self.output = nn.Linear(channels, channels)
        self.silence()

    def silence(self) -> None:
        """Let it add nothing."""
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x: (B, N, channels) -> (B, N, channels)."""
        # (B, N, channels) -> (B, heads, N, channels/heads)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(self.norm(x)), *self.key_value(context.tokens).chunk(2, 2))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=context.given[:, None, None])
        y: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return y


class CrossAttentionBlock(nn.Module):
    """x + attention of all positions to the tokens, for the U-Nets.

    Args:
        channels: C of x, (B, C, *sizes).
        width: Of a token.
        heads: Their number, a divisor of C.
    """

    def __init__(self, channels: int, width: int, heads: int = 1) -> None:
        super().__init__()
        self.attend = CrossAttention(channels, width, heads)

    def forward(self, x: Tensor, time: Tensor, context: Context | None) -> Tensor:
        assert context is not None
        attended = self.attend(x.flatten(2).transpose(1, 2), context)
        y: Tensor = x + attended.transpose(1, 2).reshape(x.shape)
        return y
