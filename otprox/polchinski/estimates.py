"""Estimates with error bars, and what a method must offer to give the renormalised potential."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .modes import Matrix

Fields = Callable[[Tensor], Tensor]  # fields (*batch, n, N) -> (*batch, n) or (*batch, n, k)


@dataclass(frozen=True, eq=False)
class Estimate:
    """A value with its standard error, which is 0 where a method has none to speak of (closed forms, quadrature).

    What sampling knows beside: `ess`, the effective number of weighted samples as a fraction of all; `acceptance` of
    the Markov chains; `spread`, the Gelman–Rubin ratio R̂ of total to within-chain spread of the field over all sites,
    1 when the chains agree. All (*batch, n).
    """

    value: Tensor
    error: Tensor
    ess: Tensor | None = None
    acceptance: Tensor | None = None
    spread: Tensor | None = None

    @classmethod
    def exact(cls, value: Tensor) -> Estimate:
        return cls(value, torch.zeros_like(value))


@runtime_checkable
class Method(Protocol):
    """A way to compute V_C(φ) = −log E e^{−V₀(φ+ζ)}, ζ ~ N(0, C), at fields φ (*batch, n, N)."""

    def supports(self, V0: Any, sites: int) -> str | None:
        """None, or why not, in words."""
        ...

    def value(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        """V_C, (*batch, n)."""
        ...

    def gradient(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        """∇V_C = E_fluct ∇V₀(φ+ζ), (*batch, n, N)."""
        ...

    def expect(self, V0: Any, C: Matrix, phi: Tensor, f: Fields) -> Estimate:
        """E_fluct f(φ+ζ) under the fluctuation measure ∝ e^{−V₀(φ+ζ)}g_C(dζ), (*batch, n) or (*batch, n, k)."""
        ...
