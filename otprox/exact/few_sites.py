"""The Polchinski flow on one and two sites by quadrature, and of sine-Gordon on one site by its series."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .bures import root, symmetric

CHUNK = 2_000_000  # values of V₀ at a time


@dataclass(frozen=True, eq=False)
class FewSites:
    """V_C(φ) = −log E e^{−V₀(φ+ζ)}, ζ ~ N(0, C), and ν ∝ g_D e^{−V_C}, for V₀: (…, N) -> (…) on N = 1 or 2 sites.

    The trapezoidal rule in units of the standard deviations of ζ, which converges faster than geometrically for smooth
    V₀; it reaches ±`reach` of them (14 on one site, 8.4 on two). C, D: (N, N), C may be singular; φ: (…, N).
    """

    V0: Callable[[Tensor], Tensor]
    sites: int = 1

    def __post_init__(self) -> None:
        if self.sites not in (1, 2):
            raise ValueError(f"quadrature is for 1 or 2 sites, not {self.sites}")

    def potential(self, C: Tensor, phi: Tensor) -> Tensor:
        """V_C(φ), (…,)."""
        if not C.any():
            return self.V0(phi)
        return self._over_fields(lambda f: -torch.logsumexp(self._log_weights(C, f)[0], -1), phi)

    def gradient(self, C: Tensor, phi: Tensor) -> Tensor:
        """∇V_C(φ) = E ∇V₀(φ+ζ) under the fluctuation measure ∝ e^{−V₀(φ+ζ)}g_C(dζ); (…, N)."""

        def mean_slope(f: Tensor) -> Tensor:
            logw, psi = self._log_weights(C, f)
            return torch.einsum("mn,mni->mi", logw.softmax(-1), self._slopes(psi))

        return self._over_fields(mean_slope, phi)

    def hessian(self, C: Tensor, phi: Tensor) -> Tensor:
        """∇²V_C(φ) = E ∇²V₀ − Cov ∇V₀ under the fluctuation measure; (…, N, N)."""

        def curvature(f: Tensor) -> Tensor:
            logw, psi = self._log_weights(C, f)
            w, slope = logw.softmax(-1), self._slopes(psi)
            slope = slope - torch.einsum("mn,mni->mi", w, slope)[:, None, :]
            bend = torch.einsum("mn,mnij->mij", w, self._bends(psi))
            return bend - torch.einsum("mn,mni,mnj->mij", w, slope, slope)

        return self._over_fields(curvature, phi)

    def expect(self, C: Tensor, D: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """∫ f dν under ν ∝ g_D e^{−V_C}, f: (n, N) -> (n,) or (n, k). C = 0 and D = C_∞ give ν₀."""
        z, log_g = self._nodes()
        phi = z @ root(D)
        w = (log_g - self.potential(C, phi)).softmax(-1)
        return torch.tensordot(w, f(phi), dims=1)

    def second_moment(self, C: Tensor, D: Tensor) -> Tensor:
        """E φφᵀ under ν, (N, N)."""
        return self.expect(C, D, lambda phi: phi[..., :, None] * phi[..., None, :])

    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Nodes z (n, N) and the logarithms of weight × density of N(0, I)."""
        reach, step = (14.0, 0.02) if self.sites == 1 else (8.4, 0.21)
        axis = torch.arange(-reach, reach + step / 2, step, dtype=torch.float64)
        z = torch.cartesian_prod(*[axis] * self.sites).reshape(-1, self.sites)
        return z, -0.5 * z.square().sum(-1) + self.sites * math.log(step / math.sqrt(2 * math.pi))

    def _log_weights(self, C: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """log of the terms of E e^{−V₀(φ+ζ)} and the fields φ + ζ, (m, n) and (m, n, N)."""
        z, log_g = self._nodes()
        psi = phi[:, None, :] + z @ root(C)
        return log_g - self.V0(psi), psi

    def _over_fields(self, f: Callable[[Tensor], Tensor], phi: Tensor) -> Tensor:
        rows = phi.reshape(-1, self.sites)
        parts = [f(chunk) for chunk in rows.split(max(1, CHUNK // len(self._nodes()[0])))]
        result = torch.cat(parts)
        return result.reshape(*phi.shape[:-1], *result.shape[1:])

    def _slopes(self, psi: Tensor) -> Tensor:
        x = psi.detach().requires_grad_()
        return torch.autograd.grad(self.V0(x).sum(), x)[0]

    def _bends(self, psi: Tensor) -> Tensor:
        x = psi.detach().requires_grad_()
        slope = torch.autograd.grad(self.V0(x).sum(), x, create_graph=True)[0]
        rows = [torch.autograd.grad(slope[..., i].sum(), x, retain_graph=True)[0] for i in range(self.sites)]
        return symmetric(torch.stack(rows, -2))


def phi4(g: float = 1.0, mu: float = -1.0) -> Callable[[Tensor], Tensor]:
    """V₀(φ) = Σ over sites of ¼gφ⁴ + ½μφ², (…, N) -> (…)."""
    return lambda phi: (0.25 * g * phi**4 + 0.5 * mu * phi**2).sum(-1)


def phi4_second_moment(g: float = 1.0) -> float:
    """E φ² = 2Γ(¾)/(Γ(¼)g^½) under e^{−gφ⁴/4}, one site of φ⁴ whose mass terms cancel (μ = −1, C_∞ = 1)."""
    return 2 * math.gamma(0.75) / math.gamma(0.25) / math.sqrt(g)


def sine_gordon(z: float, beta: float, C: Tensor | float, phi: Tensor, terms: int = 64) -> Tensor:
    """V_C(φ) for V₀ = z cos βφ on one site: −log[I₀(z) + 2Σₙ(−1)ⁿIₙ(z)e^{−n²β²C/2}cos nβφ], any shape of φ.

    The Jacobi–Anger series (Abramowitz, Stegun 9.6.34) under the heat flow. It alternates: about 2|z|/ln 10 digits
    are lost where V₀ is largest.

    >>> round(sine_gordon(1.0, 2.0, 0.5, torch.tensor(0.0, dtype=torch.float64)).item(), 12)
    0.156405669296
    """
    n = torch.arange(terms, dtype=torch.float64)
    amplitude = bessel_i(terms, z) * torch.where(n > 0, 2.0, 1.0) * (-1.0) ** n * torch.exp(-0.5 * (n * beta) ** 2 * C)
    return -(amplitude * torch.cos(n * beta * phi[..., None])).sum(-1).log()


def bessel_i(count: int, z: float) -> Tensor:
    """I₀(z), …, I_{count−1}(z) by their power series Σ_k (z/2)^{n+2k}/(k!(n+k)!)."""
    n, k = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(60 + int(2 * abs(z)), dtype=torch.float64)
    log_terms = (n + 2 * k) * math.log(abs(z) / 2 or 1.0) - torch.lgamma(k + 1) - torch.lgamma(n + k + 1)
    values = torch.exp(log_terms).sum(-1) if z else (n[:, 0] == 0).double()
    return values if z >= 0 else values * (-1.0) ** n[:, 0]
