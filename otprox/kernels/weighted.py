"""A kernel between points that carry weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Kernel

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Weighted(Kernel):
    """a(x)·k(x, y)·a(y) with a = exp(V − V0/2), for functions V and V0 of points (*batch, n, d) -> (*batch, n).

    With V = V0 it is the kernel for which Stein's flow towards e^{−V} has a spectral gap. V that grows faster than V0/2
    gives weights that overflow far out: an error.
    """

    V: Field
    V0: Field
    k: Kernel

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight(x)[..., :, None] * self.k(x, y) * self.weight(y)[..., None, :]

    def log_weight(self, x: Tensor) -> Tensor:
        """V − V0/2, (*batch, n)."""
        value = self.V(x) - 0.5 * self.V0(x)
        if value.shape != x.shape[:-1]:
            raise ValueError(
                f"V and V0 must map points {tuple(x.shape)} to {tuple(x.shape[:-1])}, not {tuple(value.shape)}"
            )
        return value

    def weight(self, x: Tensor) -> Tensor:
        """a(x), (*batch, n)."""
        log_a = self.log_weight(x)
        a = log_a.exp()
        if not a.isfinite().all():
            raise ValueError(
                f"the weight exp(V − V0/2) of the kernel is not finite: V − V0/2 reaches {log_a.max().item():.4g}; "
                "a V0 that grows like V would work"
            )
        return a

    def fit(self, x: Tensor) -> Kernel:
        return Weighted(self.V, self.V0, self.k.fit(x))

    def indefinite(self, neutral: bool = False) -> str | None:
        return self.k.indefinite()  # against a·σ, whose total is any


def slope_of(f: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and ∇f(x), differentiable where x is."""
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        value = f(at)
        if not value.requires_grad:
            return value, torch.zeros_like(x)
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=x.requires_grad)
    return (value if x.requires_grad else value.detach()), slope
