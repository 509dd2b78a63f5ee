"""Renormalised potentials without sampling: closed forms, Gauss–Hermite on few sites, the sine-Gordon series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functionals import Quadratic
from ..functionals.base import differentiate, scalar_potential
from ..measures import GaussHermite
from ..measures.covariance import dense
from .estimates import Estimate, Fields
from .models import FreeField, SineGordon, gradient_of
from .modes import Matrix, root

ORDERS = {1: 240, 2: 96, 3: 32}  # nodes an axis
CHUNK = 4_000_000  # numbers at a time


@dataclass(frozen=True)
class ClosedForm:
    """The free field: V_t is quadratic again (`FreeField.renormalise`). V₀ is a FreeField or a Quadratic."""

    def supports(self, V0: Any, sites: int) -> str | None:
        return None if isinstance(V0, FreeField | Quadratic) else "V₀ is not a FreeField or a Quadratic"

    def renormalise(self, V0: Any, C: Matrix) -> FreeField:
        """V_C as a FreeField."""
        return (FreeField.of(V0) if isinstance(V0, Quadratic) else V0).renormalise(C)

    def value(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return Estimate.exact(self.renormalise(V0, C)(phi))

    def gradient(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return Estimate.exact(self.renormalise(V0, C).gradient(phi))

    def expect(self, V0: Any, C: Matrix, phi: Tensor, f: Fields) -> Estimate:
        raise TypeError("ClosedForm has no expectation of a general f: use HermiteSites() or Fluctuations(generator)")


@dataclass(frozen=True)
class HermiteSites:
    """Gauss–Hermite rule for ζ ~ N(0, C) on N ≤ 3 sites, `order` nodes an axis (240, 96, 32 for N = 1, 2, 3).

    Values are differentiable in φ. The nodes sit around φ, so precision is best where e^{−V₀} is not far from there.
    """

    order: int | None = None

    def supports(self, V0: Any, sites: int) -> str | None:
        return None if sites <= 3 else f"quadrature is for N ≤ 3 sites, not {sites}"

    def value(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return Estimate.exact(self._by_chunks(phi, lambda x: -torch.logsumexp(self._log_terms(V0, C, x)[0], -1)))

    def gradient(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return self.expect(V0, C, phi, lambda psi: gradient_of(V0, psi))

    def expect(self, V0: Any, C: Matrix, phi: Tensor, f: Fields) -> Estimate:
        def mean(x: Tensor) -> Tensor:
            log_terms, psi = self._log_terms(V0, C, x)
            values, w = f(psi), log_terms.softmax(-1)
            return (w * values).sum(-1) if values.ndim == w.ndim else (w[..., None] * values).sum(-2)

        return Estimate.exact(self._by_chunks(phi, mean))

    def _rule(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        sites = phi.shape[-1]
        return GaussHermite(self.order or ORDERS[sites]).nodes(sites, phi.dtype, phi.device)

    def _log_terms(self, V0: Any, C: Matrix, phi: Tensor) -> tuple[Tensor, Tensor]:
        """log of the weighted terms e^{−V₀(φ+ζ)}, (m, nodes), and the fields φ + ζ, (m, nodes, N)."""
        z, w = self._rule(phi)
        psi = phi[:, None, :] + z @ dense(root(C))
        return w.log() - scalar_potential(V0, "V0")(psi), psi

    def _by_chunks(self, phi: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        size = max(1, CHUNK // (len(self._rule(phi)[1]) * phi.shape[-1]))
        result = torch.cat([f(rows) for rows in phi.reshape(-1, phi.shape[-1]).split(size)])
        return result.reshape(*phi.shape[:-1], *result.shape[1:])


@dataclass(frozen=True)
class BesselSeries:
    """Sine-Gordon on one site: V_C = −log[I₀(z) + 2Σₙ(−1)ⁿIₙ(z)e^{−n²β²C/2}cos nβφ] (Jacobi–Anger under the heat flow).

    The sum alternates and loses about 2|z|/ln 10 digits, so |z| ≤ 4 is asked for.
    """

    terms: int = 64

    def supports(self, V0: Any, sites: int) -> str | None:
        if not isinstance(V0, SineGordon) or sites != 1:
            return "the series is for SineGordon on one site"
        weight = 1.0 if V0.lattice is None else V0.lattice.spacing**V0.lattice.dim
        return None if abs(V0.z * weight) <= 4 else f"the series loses too many digits at |z| = {abs(V0.z * weight):g}"

    def value(self, V0: SineGordon, C: Matrix, phi: Tensor) -> Estimate:
        return Estimate.exact(-self._partition(V0, C, phi).log())

    def gradient(self, V0: SineGordon, C: Matrix, phi: Tensor) -> Estimate:
        return Estimate.exact(differentiate(lambda x: self.value(V0, C, x).value, phi, "V0"))

    def expect(self, V0: SineGordon, C: Matrix, phi: Tensor, f: Fields) -> Estimate:
        return HermiteSites().expect(V0, C, phi, f)

    def _partition(self, V0: SineGordon, C: Matrix, phi: Tensor) -> Tensor:
        """E e^{−V₀(φ+ζ)}; the Fourier coefficients of e^{−V₀} by the trapezoidal rule over one period."""
        n = torch.arange(self.terms, dtype=phi.dtype, device=phi.device)
        theta = 2 * torch.pi * torch.arange(4 * self.terms, dtype=phi.dtype, device=phi.device) / (4 * self.terms)
        density = torch.exp(-V0((theta / V0.beta)[:, None] if V0.beta else 0 * theta[:, None]))
        coefficients = (density * torch.cos(n[:, None] * theta)).mean(-1) * torch.where(n > 0, 2.0, 1.0)
        damped = coefficients * torch.exp(-0.5 * (n * V0.beta) ** 2 * dense(C)[0, 0])
        return (damped * torch.cos(n * V0.beta * phi)).sum(-1)
