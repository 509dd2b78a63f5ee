"""The discrete energy that a quantile prox minimises, with its gradient and its Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .. import pairwise
from ..functionals import Functional, Interaction, Potential, Quadratic
from ..functionals.local_prox import offers
from ..kernels import Stationary
from ..measures.covariance import dense


class Local(NamedTuple):
    """E and its derivatives at x: the Hessian is diag(diagonal) + tridiag(coupling) − (pairs; see `curve`)."""

    value: Tensor  # (*batch,), inf where E or its gradient is not finite
    magnitude: Tensor  # (*batch,), sum of the sizes of the terms, for the rounding error of `value`
    gradient: Tensor  # (*batch, n)
    diagonal: Tensor  # (*batch, n): cost, potentials and W''∗μ
    coupling: Tensor | None  # (*batch, n − 1): spring constants of the gaps, from internal energies

    @property
    def main(self) -> Tensor:
        """The main diagonal of the tridiagonal part."""
        if self.coupling is None:
            return self.diagonal
        main = self.diagonal.clone()
        main[..., 1:] += self.coupling
        main[..., :-1] += self.coupling
        return main


@dataclass(frozen=True, eq=False)
class QuantileEnergy:
    """n times the objective of a prox on quantiles x against y,

        E(x) = Σ ω_i V(x_i) + Σ k_j u(−log(n g_j/k_j)) + ½ Σ ω_i ω_j W(x_i − x_j)/n + ½ κ Σ ω_i (x_i − y_i)²,

    with gaps g_j = x_{j+1} − x_j and κ = 1/(tau·Q). ω and k are ones on the n quantiles; on a coarser set of nodes,
    ω_i is the number of quantiles that a node stands for and k_j the number of gaps that a gap holds.
    E is computed in float64, but V, W and u are called in `dtype`.
    """

    y: Tensor  # (*batch, m)
    kappa: Tensor  # (*batch, 1)
    n: int
    dtype: torch.dtype
    potentials: tuple[tuple[float, Potential], ...] = ()
    internals: tuple[tuple[float, Functional], ...] = ()
    interactions: tuple[tuple[float, Interaction], ...] = ()
    omega: Tensor | None = None  # (m,)
    k: Tensor | None = None  # (m − 1,)

    @classmethod
    def of(cls, F: Functional, y: Tensor, kappa: Tensor) -> QuantileEnergy:
        """From the normal form of F; terms with coefficient 0 are dropped."""
        terms = [(c, f) for c, f in F.terms if c != 0]
        return cls(
            y=y.detach().double(),
            kappa=kappa.detach().double(),
            n=y.shape[-1],
            dtype=y.dtype,
            potentials=tuple((c, f) for c, f in terms if isinstance(f, Potential)),
            internals=tuple((c, f) for c, f in terms if offers(f, "per_mass")),
            interactions=tuple((c, f) for c, f in terms if isinstance(f, Interaction)),
        )

    def coarsened(self, index: Tensor) -> Self:
        """The same energy of the piecewise linear x on the nodes `index` (m,), which keep both ends."""
        k = index.diff().to(self.y)
        omega = torch.nn.functional.pad(k, (1, 1), value=1.0).unfold(0, 2, 1).sum(-1) / 2
        return replace(self, y=self.y[..., index], omega=omega, k=k)

    @property
    def barrier(self) -> bool:
        """Whether E is infinite where quantiles coincide: an internal energy, or a W with W(0) = ∞."""
        zero = self.y.new_zeros(1, dtype=self.dtype)
        return bool(self.internals) or any(not torch.isfinite(f.W(zero)).all() for _, f in self.interactions)

    def relative(self, squared: Tensor, x: Tensor) -> Tensor:
        """√(squared/(nκ)) over the spread of y and the displacement: a relative W2 distance, from a dual norm of ∇E."""
        spread = (self.y - self.y.mean(-1, keepdim=True)).square().mean(-1) + (x - self.y).square().mean(-1)
        tiny = torch.finfo(spread.dtype).tiny
        return (squared.clamp_min(0) / (self.n * self.kappa[..., 0]) / spread.clamp_min(tiny)).sqrt()

    def at(self, x: Tensor) -> Local:
        """E, its gradient and the local part of its Hessian."""
        shift = x - self.y
        force = self.kappa * shift
        parts = [0.5 * self._total(force * shift)]
        gradient, diagonal = force, self.kappa.expand_as(x)
        for v, dv, ddv in (*self._of_potentials(x), *self._of_pairs(x)):
            parts.append(self._total(v))
            gradient, diagonal = gradient + dv, diagonal + ddv
        gradient, diagonal = self._weighted(gradient), self._weighted(diagonal)
        coupling = None
        if self.internals:
            energy, pressure, coupling = self._of_gaps(x)
            parts.append(energy)
            gradient = gradient.clone()
            gradient[..., :-1] += pressure
            gradient[..., 1:] -= pressure
        value = torch.stack(parts).sum(0)
        finite = torch.isfinite(value) & torch.isfinite(gradient.sum(-1)) & torch.isfinite(diagonal.sum(-1))
        value = torch.where(finite, value, torch.inf)
        return Local(value, torch.stack(parts).abs().sum(0), gradient, diagonal, coupling)

    def curve(self, x: Tensor, v: Tensor) -> Tensor:
        """The part of the Hessian that couples all pairs, ω_i Σ_j W''(x_i − x_j) ω_j v_j/n, to be subtracted."""
        w = self._weighted(v) / self.n
        total = sum(
            (c * Pairs(f.W).curve(self._points(x), w.to(self.dtype)) for c, f in self.interactions), torch.zeros(())
        )
        return self._weighted(total.to(x))

    def hessian(self, x: Tensor, s: Local, v: Tensor) -> Tensor:
        """∇²E(x) v."""
        out = s.main * v
        if s.coupling is not None:
            out[..., 1:] -= s.coupling * v[..., :-1]
            out[..., :-1] -= s.coupling * v[..., 1:]
        return out - self.curve(x, v) if self.interactions else out

    def _of_potentials(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [_scaled(c, derivatives(f, self._points(x)), x) for c, f in self.potentials]

    def _of_pairs(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """½W∗μ, W'∗μ, W''∗μ at the quantiles."""
        out = []
        for c, f in self.interactions:
            points = self._points(x)
            w = self._weighted(torch.ones_like(x)).to(self.dtype) / self.n
            value, slope, curvature = Pairs(f.W).sums(points, points, w)
            out.append(_scaled(c, (value / 2, slope, curvature), x))
        return out

    def _of_gaps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ k u, the pressures k u'/g, and the spring constants k (u' + u'')/g²; ∞ when a gap is not positive."""
        gaps = x.diff(dim=-1)
        positive = (gaps > 0).all(-1)
        stiffness = (1 if self.k is None else self.k) / gaps
        log_rho = (stiffness / self.n).log_().to(self.dtype)
        energy, pressure, slope = torch.zeros_like(x[..., 0]), torch.zeros_like(gaps), torch.zeros_like(gaps)
        for c, f in self.internals:
            u, du, ddu = (t.to(gaps) for t in f.per_mass(log_rho))  # type: ignore[attr-defined]
            energy = energy + c * (u if self.k is None else u * self.k).sum(-1)
            pressure = torch.add(pressure, du, alpha=c)
            slope = torch.add(slope, du + ddu, alpha=c)
        pressure, coupling = pressure * stiffness, (slope * stiffness).div_(gaps)
        return torch.where(positive, energy, torch.inf), pressure, coupling

    def _points(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)[..., None]

    def _weighted(self, v: Tensor) -> Tensor:
        return v if self.omega is None else v * self.omega

    def _total(self, v: Tensor) -> Tensor:
        return self._weighted(v).sum(-1)


def derivatives(f: Potential, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V, V', V'' at points (*batch, m, 1), each (*batch, m), by automatic differentiation; at once for a Quadratic."""
    if isinstance(f.V, Quadratic):
        V = f.V
        z, p = (points - V.mean[..., None, :])[..., 0], dense(V.precision)[..., 0]
        constant = V.constant[..., None] if isinstance(V.constant, Tensor) else V.constant
        return tuple(t.detach() for t in (0.5 * p * z * z + constant, p * z, p.expand_as(z)))  # type: ignore[return-value]
    with torch.enable_grad():
        y = points.detach().requires_grad_()
        v = f.value(y)
        slope = _slope(v, y, "V")
        curvature = _slope(slope, y, "V", constant=True)
    return v.detach(), slope.detach()[..., 0], curvature.detach()[..., 0]


def _slope(v: Tensor, y: Tensor, name: str, constant: bool = False) -> Tensor:
    """dΣv/dy, differentiable again; 0 for a `constant` v that does not depend on y, otherwise an error."""
    if not v.requires_grad:
        if constant:
            return torch.zeros_like(y)
        raise TypeError(
            f"{name} is not differentiable by autograd: write it with torch operations, without .detach(), .item() or "
            "NumPy"
        )
    (g,) = torch.autograd.grad(v.sum(), y, create_graph=not constant, allow_unused=True)
    return torch.zeros_like(y) if g is None else g


def _scaled(c: float, parts: tuple[Tensor, Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    v, dv, ddv = (part.to(like) if c == 1 else c * part.to(like) for part in parts)
    return v, dv, ddv


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sums over pairs of W and its derivatives, W even on the line: W'(0) counts as 0, and so does an infinite W''(0).

    A kernel with a fast `convolve` is differentiated through it; another W tile by tile, so memory stays O(n).
    """

    W: Callable[[Tensor], Tensor]

    def sums(self, x: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Σ_j w_j W^(p)(x_i − y_j) for p = 0, 1, 2: each (*batch, m) for x (*batch, m, 1), y (*batch, n, 1)."""
        if not self._fast(x, y, w):
            return tuple(pairwise.convolve(self._order(p), x, y, w) for p in range(3))  # type: ignore[return-value]
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            value = pairwise.convolve(self.W, z, y.detach(), w)
            slope = _slope(value, z, "W")
            curvature = _slope(slope, z, "W", constant=True)
        return value.detach(), slope.detach()[..., 0], curvature.detach()[..., 0]

    def curve(self, x: Tensor, v: Tensor) -> Tensor:
        """Σ_j v_j W''(x_i − x_j) for v of any sign."""
        if not self._fast(x, x, v.abs() + 1):
            return pairwise.convolve(self._order(2), x, x, v)
        base = v.abs() + v.abs().mean(-1, keepdim=True) + torch.finfo(v.dtype).tiny  # fast routes may divide by Σ v
        return self.sums(x, x, v + base)[2] - self.sums(x, x, base)[2]

    def at(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W, W', W'' at displacements z (*batch, m)."""
        return self.sums(z[..., None], z.new_zeros(*z.shape[:-1], 1, 1), z.new_ones(*z.shape[:-1], 1))

    def _fast(self, x: Tensor, y: Tensor, w: Tensor) -> bool:
        if isinstance(self.W, Stationary):
            return True
        fast = getattr(self.W, "convolve", None)
        return fast is not None and fast(x[..., :1, :], y[..., :1, :], w[..., :1]) is not None

    def _order(self, p: int) -> Callable[[Tensor], Tensor]:
        if p == 0:
            return self.W

        def derivative(z: Tensor) -> Tensor:
            with torch.enable_grad():
                y = z.detach().requires_grad_()
                slope = _slope(self.W(y), y, "W")
                out = (slope if p == 1 else _slope(slope, y, "W", constant=True))[..., 0].detach()
            zero = z[..., 0] == 0
            return out.masked_fill(zero if p == 1 else zero & ~torch.isfinite(out), 0.0)

        return derivative
