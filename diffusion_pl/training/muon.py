"""MuonAdamW: Muon for the matrices of a model and AdamW for the rest, as one optimizer.

    Muon:   M ← μ M + G,   W ← (1 − η d) W − 0.2 √max(n, m) η O(G + μ M),     O: nearly the nearest orthogonal matrix

The factor 0.2 √max(n, m) gives an update of W: (n, m) the root mean square that AdamW's have, so that one learning rate
and weight decay serve both.

Reference: Jordan et al., "Muon", 2024; the factor: Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982,
Eq. 4.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """torch.optim.Muon for parameters of two dimensions, torch.optim.AdamW for all others.

    Those of two dimensions are the weights of linear layers, the first, the last and tables of embeddings among them;
    biases, gains and kernels of convolutions are the others'.

    Args:
        params: parameters, not groups of them.
        lr: learning rate of both.
        weight_decay: decoupled weight decay of both.
        momentum: μ of Muon.
        nesterov: whether Muon looks ahead, G + μ M, or takes M itself.
        betas: decays of AdamW's moments.
        eps: added to the denominator of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        given = list(params)
        if not all(isinstance(p, Tensor) for p in given):
            raise ValueError("MuonAdamW: expected parameters, got groups or names of them. Fix: give a list of tensors")
        both: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._inner: list[Optimizer] = []
        matrices, others = ([p for p in given if (p.ndim == 2) == two] for two in (True, False))
        if matrices:
            scale = "match_rms_adamw"
            self._inner.append(Muon(matrices, **both, momentum=momentum, nesterov=nesterov, adjust_lr_fn=scale))
        if others:
            self._inner.append(AdamW(others, **both, betas=(betas[0], betas[1]), eps=eps))
        super().__init__([group for inner in self._inner for group in inner.param_groups], both)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Each has one group; loading a state replaces groups and state, which all three share.
        for inner, group in zip(self._inner, self.param_groups, strict=True):
            inner.param_groups, inner.state = [group], self.state
            inner.step()
        return loss
