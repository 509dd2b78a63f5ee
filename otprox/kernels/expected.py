"""Kernels of features averaged over data, such as that of an infinitely wide network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .base import Kernel


@dataclass(frozen=True, eq=False)
class Expected(Kernel):
    """k(z, z') = E_x ⟨φ(z, x), φ(z', x)⟩, x uniform over the rows of `data` (N, q).

    feature: z (*batch, n, d) and data (N, q) -> values (*batch, n, N), or (*batch, n, N, p) with outputs in R^p; each
    particle by itself. With φ(z, x) one neuron of weights z, the network f_μ(x) = ∫φ(z, x) dμ(z) has the
    mean squared error E_x |f_μ(x) − f_ν(x)|² = ‖μ − ν‖²_k against a teacher ν, so `MMD(k, ν)` is half of it, and its
    flow on particles is the gradient descent of the network (Chizat, Bach 2018; Arbel et al. 2019, section 2.2). Sums
    cost O((m + n)·N·p): no pair is formed.

    >>> import torch
    >>> data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> k = Expected(lambda z, x: (z @ x.mT).relu(), data)
    >>> k(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[1.0000]])
    """

    feature: Callable[[Tensor, Tensor], Tensor]
    data: Tensor

    def __post_init__(self) -> None:
        if not callable(self.feature):
            raise TypeError(f"Expected needs a feature(z, x), not a {type(self.feature).__name__}")
        if self.data.ndim != 2 or not self.data.shape[0]:
            raise ValueError(f"Expected needs data of shape (N, q) with N ≥ 1 rows, not {tuple(self.data.shape)}")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.features(x) @ self.features(y).mT

    def features(self, z: Tensor) -> Tensor:
        """φ over all data and outputs, divided by √N: (*batch, n, N·p)."""
        rows = self.data.shape[0]
        values = self.feature(z, self.data.to(z))
        flat = values.flatten(-2) if values.ndim == z.ndim + 1 else values
        if values.shape[: z.ndim] != (*z.shape[:-1], rows):
            raise ValueError(
                f"feature must map z {tuple(z.shape)} and data {tuple(self.data.shape)} to (*batch, n, N) or "
                f"(*batch, n, N, p) with N = {rows}, not to {tuple(values.shape)}"
            )
        return flat / rows**0.5
