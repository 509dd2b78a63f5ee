"""The dynamic JKO step in the metric of collisions, over a space of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..functionals import Functional, Internal
from ..measures import Measure, Particles
from ..metrics import Landau, Metric, Wasserstein
from . import collision_curve
from .base import OnFailure, Out, Stats, check_tau, report, require, warm_start
from .collision_curve import Collided, Covector, Drive, collide, driven
from .feature_basis import Basis, Custom, Hermite
from .features import Frame
from .fitting import Objective, differentiated, reservation, shortened, some, split, whitening
from .lbfgs import Minimum, minimise

ROUND = 8  # iterations between Hessians
LEAST = 1e-4  # the weight of a fold, in units of 1/n, where a particle has less


@dataclass(frozen=True, eq=False)
class CollisionFlow:
    """argmin over covectors u_1, …, u_n of F(ν) + ½δ·Σ_k ⟨u_k, K_k u_k⟩, δ = tau/n, with ν the end of a curve of n
    pieces (`inner_steps`), x ↦ x + δ·(K_k u_k)(x), and K_k = Landau.onsager(μ_k, ·) at the measure μ_k before piece k.

    This is F(ν) + d²(μ, ν)/(2·tau) with the action of the curve for d² (Carrillo, Delgadino, Desvillettes, Wu 2024;
    Huang, Wang 2024, arXiv:2409.12296); one piece freezes the metric at μ. Each piece ends with the dilation about the
    mean that undoes its gain of energy, so momentum and energy are exact. A carried log-density falls by log det of
    each map, exactly, with det > 0 at all particles, those of negligible weight too.

    One free u a particle has no minimiser under an entropy: the density sees ∇u, the action does not. So u_k = ∇ψ, ψ in
    a space of features, far fewer than particles: `Hermite(degree)`, `Cosines(count)`, or a callable (…, d) -> (…, K)
    in coordinates of zero mean and unit variance. As tau → 0, the means of the features over the particles follow the
    weak Landau equation of the particles themselves; what f does beyond the features is lost. L-BFGS, in coordinates
    of the Hessian and from the previous u.

    A share `held_out` of the particles, drawn by a fixed seed, takes no part: u is tried on them as on a sample of its
    own, shortened until it lowers the objective there too, and refused (μ returned) if it never does. In both cases it
    is no minimiser: converged is False, and `message` says by how much it was shortened. Unless given the share is 0.2,
    and 0 for particles of unequal weights, which are taken for the nodes of a quadrature: a part of them is none.
    `residual` is the norm of the gradient relative to that at u = 0, and 0 where the latter is rounding;
    `warm["held_out"]` is the decrease on the particles held out.
    """

    basis: Basis | Callable[[Tensor], Tensor] = field(default_factory=lambda: Hermite(4))
    inner_steps: int = field(default=1, kw_only=True)
    held_out: float | None = field(default=None, kw_only=True)
    tol: float | None = field(default=None, kw_only=True)
    max_iter: int = field(default=200, kw_only=True)
    on_failure: OnFailure = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        if self.held_out is not None and not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share of the particles, in [0, 1), not {self.held_out}")
        if not callable(self.basis) and not isinstance(self.basis, Basis):
            raise TypeError(f"basis must be Hermite(degree), Cosines(count) or a callable, not {self.basis!r}")
        if self.inner_steps < 1:
            raise ValueError(f"inner_steps must be at least 1, not {self.inner_steps}")

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if isinstance(metric, Landau) and metric.batch is not None and self.inner_steps > 1:
            return (
                "random batches would be others at every evaluation of a later inner step: inner_steps=1, or no batch"
            )
        return collision_curve.supports(F, metric, mu)

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_tau(tau, F)
        mu, metric = cast(Particles, mu), cast(Landau, metric)
        frame = Frame.of(mu, Wasserstein())
        with torch.no_grad():

            def problem(sample: Particles) -> Problem:
                return Problem.of(F, metric, frame, self._basis(), tau, self.inner_steps, sample)

            whole = fitted = held = problem(mu)
            if share := self._share(mu):
                fitted, held = (problem(some(mu, index)) for index in split(mu, share))
            best = self._fit(fitted, last)
            c, theta = shortened(never_above(held.objective, whole.objective, whole.zero()), best.x)
            gain = held.objective(torch.zeros_like(c)) - held.objective(c)
            curve = whole.curve(c)
        stats = Stats(
            converged=(best.converged & (theta == 1)).reshape(mu.batch),
            iterations=best.iterations.reshape(mu.batch),
            residual=best.residual.reshape(mu.batch),
            objective=F(curve.end) + curve.distance2 / (2 * tau),
            distance2=curve.distance2,
            message=reservation(theta, "u"),
            warm={"coefficients": c, "held_out": gain.reshape(mu.batch)},
        )
        advice = (
            "give more particles, fewer features (basis=Hermite(2)), or held_out=0; or smaller steps, more "
            "inner_steps, or raise max_iter"
        )
        return Out(curve.end, report(stats, self, advice, self.on_failure))

    def _share(self, mu: Particles) -> float:
        equal = (mu.w - mu.w[..., :1]).abs().amax() <= 1e-3 * mu.w.amax()
        return self.held_out if self.held_out is not None else 0.2 if equal else 0.0

    def _basis(self) -> Basis:
        return self.basis if isinstance(self.basis, Basis) else Custom(self.basis)

    def _fit(self, problem: Problem, last: Any) -> Minimum:
        """The minimiser over the coefficients, (items, pieces·K): rounds of L-BFGS, each begins with a Newton step."""
        zero = problem.zero()
        _check_size(zero.shape[-1], problem.mu)
        value, slope = differentiated(problem.guarded, zero)
        size = _times(problem.coordinates(zero).mT, slope).norm(dim=-1).clamp_min(torch.finfo(zero.dtype).tiny)
        noise = 100 * torch.finfo(zero.dtype).eps * (1 + value.abs())
        tol = torch.maximum((self.tol or (1e-6 if zero.dtype == torch.float64 else 1e-3)) * size, noise)
        c = _start(problem, warm_start(last, "coefficients", zero))
        iterations = torch.zeros_like(size, dtype=torch.int64)
        for left in range(self.max_iter, 0, -ROUND):
            best = self._round(problem, c, tol, noise, min(left, ROUND))
            c, iterations = best.x, iterations + best.iterations
            if best.converged.all():
                break
        residual = torch.where(size > noise, best.residual / size, 0.0)
        return replace(best, residual=residual, iterations=iterations)

    @staticmethod
    def _round(problem: Problem, c: Tensor, tol: Tensor, noise: Tensor, max_iter: int) -> Minimum:
        """L-BFGS in the coordinates of the Hessian at c."""
        S = problem.coordinates(c)

        def f(y: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = differentiated(problem.guarded, c + _times(S, y))
            return value, _times(S.mT, gradient)

        best = minimise(f, torch.zeros_like(c), tol=tol, scale=1.0, noise=noise, max_iter=max_iter)
        return replace(best, x=c + _times(S, best.x))


@dataclass(frozen=True, eq=False)
class Problem:
    """The objective on one sample, as a function of the coefficients (items, pieces·K) of ψ in each piece.

    V (*batch, n, K, d) and DV (*batch, n, K, d, d) are K_μ∇ψ_k and its Jacobian, gram (*batch, K, K) is
    ⟨∇ψ_k, K_μ∇ψ_l⟩_μ: with them the first piece is linear in the coefficients.
    """

    F: Functional
    metric: Landau
    frame: Frame
    basis: Basis
    tau: float
    pieces: int
    mu: Particles
    V: Tensor
    DV: Tensor
    gram: Tensor

    @classmethod
    def of(
        cls, F: Functional, metric: Landau, frame: Frame, basis: Basis, tau: float, pieces: int, mu: Particles
    ) -> Problem:
        u, Du = frame.derivatives(basis, mu.x)
        V, DV = metric.onsager_jacobian(mu, u, Du)
        gram = torch.einsum("...n,...nka,...nla->...kl", mu.w, u, V)
        return cls(F, metric, frame, basis, tau, pieces, mu, V, DV, (gram + gram.mT) / 2)

    def zero(self) -> Tensor:
        return self.mu.x.new_zeros(self.mu.batch.numel(), self.pieces * self.V.shape[-2])

    def objective(self, c: Tensor) -> Tensor:
        """F(ν) + d²/(2·tau) (items,), infinite where a map folds."""
        return self._value(self.curve(c))

    def guarded(self, c: Tensor) -> Tensor:
        """The objective, and a barrier −Σ b log det ∇T with what weights b particles lack to LEAST/n.

        Without it those of no weight are walls at which the objective jumps to infinity.
        """
        curve = self.curve(c)
        return self._value(curve) - (self.lacking * curve.log_det).sum(-1).reshape(-1)

    def _value(self, curve: Collided) -> Tensor:
        value = self.F(curve.end) + curve.distance2 / (2 * self.tau)
        return torch.where(curve.inside, value, torch.inf).reshape(-1)

    @property
    def lacking(self) -> Tensor:
        return (LEAST / self.mu.w.shape[-1] - self.mu.w).clamp_min(0)

    def curve(self, c: Tensor) -> Collided:
        parts = c.reshape(*self.mu.batch, self.pieces, -1).unbind(-2)
        later = [driven(self.metric, gradient(self.frame, self.basis, part)) for part in parts[1:]]
        return collide(self.mu, self.tau, [self._first(parts[0]), *later])

    def _first(self, c: Tensor) -> Drive:
        def drive(mu: Particles) -> tuple[Tensor, Tensor, Tensor]:
            power = (c * _times(self.gram, c)).sum(-1)
            return (
                torch.einsum("...k,...nka->...na", c, self.V),
                torch.einsum("...k,...nkab->...nab", c, self.DV),
                power,
            )

        return drive

    def coordinates(self, c: Tensor) -> Tensor:
        """S with c = Sy in which the Hessian at c is near the identity, (items, pieces·K, pieces·K).

        The action sees each piece, the energy mostly their sum: the two are apart in a basis of R^pieces that begins
        with (1, …, 1)/√pieces. Exact at c = 0 for one piece and the entropy.
        """
        parts, floor = c.reshape(*self.mu.batch, self.pieces, -1), torch.finfo(c.dtype).eps ** 0.5
        action, n = self.tau / self.pieces * self.gram, self.pieces
        total, rest = action + n * self._bend(parts.mean(-2)), action
        blocks = torch.stack([whitening(H, floor) for H in (total, *(n - 1) * [rest])], -3)
        blocks = blocks.reshape(-1, n, *self.gram.shape[-2:])
        ones = torch.ones(n, 1, dtype=c.dtype, device=c.device)
        Q = torch.linalg.qr(torch.cat([ones, torch.eye(n, dtype=c.dtype, device=c.device)[:, 1:]], -1)).Q
        return torch.einsum("pq,iqkl->ipkql", Q, blocks).flatten(-2).flatten(1, 2)

    def _bend(self, c: Tensor) -> Tensor:
        """The Hessian of the energies, as if of the entropy, and of the dilation in one piece at c: (*batch, K, K)."""
        mu, delta, d = self.mu, self.tau / self.pieces, self.mu.dim
        entropy = sum(c for c, f in self.F.terms if isinstance(f, Internal))
        jacobian = torch.einsum("...k,...nkab->...nab", delta * c, self.DV)
        jacobian = jacobian + torch.eye(d, dtype=c.dtype, device=c.device)
        stretch = torch.linalg.solve(jacobian[..., None, :, :], self.DV)
        guarded = entropy * mu.w + self.lacking
        bend = torch.einsum("...n,...nkab,...nlba->...kl", guarded, stretch, stretch)
        spread = torch.einsum("...n,...nka,...nla->...kl", mu.w, self.V, self.V)
        energy = (mu.w * (mu.x - mu.mean[..., None, :]).square().sum(-1)).sum(-1)[..., None, None]
        return delta**2 * (bend + entropy * d * spread / energy)


def gradient(frame: Frame, basis: Basis, c: Tensor) -> Covector:
    """∇ψ = Σ_k c_k∇ψ_k, c (*batch, K)."""

    def field(x: Tensor) -> tuple[Tensor, Tensor]:
        u, du = frame.derivatives(basis, x)
        return torch.einsum("...k,...nka->...na", c, u), torch.einsum("...k,...nkab->...nab", c, du)

    return field


def _check_size(features: int, mu: Particles) -> None:
    n = mu.x.shape[-2]
    if 2 * features > n:
        raise ValueError(
            f"{features} coefficients are too many for {n} particles: the density that they carry would follow noise. "
            "Give more particles, a smaller basis or fewer inner_steps"
        )


def _start(problem: Problem, warm: Tensor | None) -> Tensor:
    """The previous coefficients where they lower the objective, else 0."""
    zero = problem.zero()
    if warm is None:
        return zero
    better = problem.guarded(warm) < problem.guarded(zero)
    return torch.where(better[:, None], warm, zero)


def never_above(J: Objective, whole: Objective, zero: Tensor) -> Objective:
    """J, infinite where the objective on all particles is above its value at 0."""
    before = whole(zero)
    slack = 100 * torch.finfo(before.dtype).eps * (1 + before.abs())
    return lambda c: torch.where(whole(c) <= before + slack, J(c), torch.inf)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
