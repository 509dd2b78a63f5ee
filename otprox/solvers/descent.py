"""Implicit steps on particles by descent: any differentiable functional, any metric with an Onsager operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..domains import Box
from ..functionals import Functional, Internal
from ..functionals.constraint import constraint_in
from ..measures import Measure, Particles, Quantiles, Spectral
from ..measures.covariance import solve_rows
from ..metrics import Entropic, Metric, Moving, Wasserstein
from .base import OnFailure, Out, Stats, check_tau, report, require, rewinding, slowest, warm_start
from .lbfgs import Bounds, Minimum, Objective, minimise

Nodal = Particles | Quantiles
Chart = Callable[[Tensor], tuple[Tensor, Tensor]]  # coordinates -> points (*batch, n, d), squared distance (*batch,)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """argmin over particle positions X of F(Σ w_i δ_{X_i}) + Σ w_i ⟨X_i − x_i, Q⁻¹(X_i − x_i)⟩/(2·tau), by L-BFGS.

    In another metric, the frozen-metric implicit step: argmin_u F((id + tau·K_μu)#μ) + (tau/2)⟨u, K_μu⟩_μ over
    covectors u, with K_μ = metric.onsager(μ, ·) taken at the old measure. F is evaluated on the moved particles and
    differentiated by autograd (Jordan, Kinderlehrer & Otto 1998 for the step; Nocedal & Wright 2006, chapter 7, for the
    method).

    The coordinates are y = √w·L⁻¹(X − x), Q = LLᵀ, in which the squared distance is |y|² and the gradient is that of
    W2: `residual` is the root mean square over μ of Lᵀ(∇δF(X) + Q⁻¹(X − x)/tau) (other metrics: of K_μ(∇δF + u)). An
    item has converged when it is below `tol` times its value at X = x, or when it moves the points by less than their
    rounding. `tol` is 1e-8 unless given (1e-4 in float32). In a Box the step is constrained to it. A particle of weight
    0 stays. Random batches are the same all through a step. A carried log-density is dropped. Results are constants to
    autograd.
    """

    tol: float | None = None
    max_iter: int = 500
    memory: int = 10
    on_failure: OnFailure = "warn"

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Nodal):
            return f"it moves Particles (or Quantiles), not a {type(mu).__name__}"
        if isinstance(metric, Entropic):
            return "Entropic has no Onsager operator; use its base metric, or a Density with Scaling"
        if isinstance(metric, Moving):
            return "a Moving metric acts over an interval: use .over(t0, t1)"
        if isinstance(mu, Particles) and isinstance(mu.domain, Box) and not _separable(metric):
            return "particles in a Box need Wasserstein with a diagonal Q, so that walls bound coordinates one by one"
        reason = metric.declines(mu)
        if reason is not None:
            return reason
        constraint = constraint_in(F)
        if constraint is not None:
            return f"{type(constraint).__name__} is a constraint, which a descent does not see"
        internal = [type(f).__name__ for _, f in F.terms if isinstance(f, Internal)]
        if internal and isinstance(mu, Particles):
            return (
                f"{' + '.join(internal)} has no lower bound over free particles, which carry no density (a carried "
                "log-density does not help: each particle could be stretched on its own); use Blob(width), "
                "solver=GaussianMap(), CollisionFlow() with a log_density under Landau, or another representation "
                "(Quantiles in 1-D, Density on a Grid)"
            )
        return None

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        mu = cast(Nodal, mu)
        check_tau(tau, F, slowest(metric))
        chart = _wasserstein(metric, mu) if isinstance(metric, Wasserstein) else _frozen(metric, mu, tau)
        objective, rewind = _objective(F, mu, chart, tau), rewinding((*F.generators(), *metric.generators()))

        def f(y: Tensor) -> tuple[Tensor, Tensor]:
            return objective(rewind(y))

        origin = mu.points.new_zeros(mu.batch.numel(), mu.points.shape[-2] * mu.dim)
        force = f(origin)[1].norm(dim=-1)
        noise = 100 * torch.finfo(origin.dtype).eps * _size(F, mu)
        if not force.isfinite().all():
            raise ValueError(f"the gradient of {F} is non-finite, NaN or infinite, where the step begins")
        best = minimise(
            f,
            _start(f, origin, warm_start(last, "covector", origin), tau),
            tol=torch.maximum(self._tol(origin) * force, _rounding(metric, mu) / tau),
            scale=tau,
            noise=noise,
            memory=self.memory,
            max_iter=self.max_iter,
            bounds=_walls(metric, mu),
        )
        with torch.no_grad():
            x, distance2 = chart(rewind(best.x).reshape(mu.points.shape))
        stats = _stats(best, distance2, mu.batch, tau)
        advice = "raise max_iter or tol, take smaller steps, or check that F is differentiable and bounded below"
        return Out(_moved(mu, x), report(stats, self, advice, self.on_failure))

    def _tol(self, like: Tensor) -> float:
        return self.tol if self.tol is not None else 1e-8 if like.dtype == torch.float64 else 1e-4


def _wasserstein(metric: Wasserstein, mu: Nodal) -> Chart:
    """y ↦ (x + yLᵀ/√w, |y|²)."""
    factor, x = metric.factor(mu), mu.points.detach()
    inverse_root = _inverse_root(mu)

    def chart(y: Tensor) -> tuple[Tensor, Tensor]:
        z = y * inverse_root
        return x + (z if factor is None else z @ factor.mT), y.square().sum((-2, -1))

    return chart


def _frozen(metric: Metric, mu: Nodal, tau: float) -> Chart:
    """y = tau·√w·u ↦ (x + tau·K_μu, tau²·⟨u, K_μu⟩_μ)."""
    x, inverse_root = mu.points.detach(), _inverse_root(mu)

    def chart(y: Tensor) -> tuple[Tensor, Tensor]:
        u = y * inverse_root / tau
        v = metric.onsager(mu, u)
        return x + tau * v, tau**2 * (mu.w[..., None] * u * v).sum((-2, -1))

    return chart


def _separable(metric: Metric) -> bool:
    """Whether the coordinates of the step are those of space."""
    if not isinstance(metric, Wasserstein) or isinstance(metric.Q, Spectral):
        return False
    return metric.Q is None or not (metric.Q.triu(1)).any()


def _walls(metric: Metric, mu: Nodal) -> Bounds | None:
    """A Box in the coordinates y = √w·L⁻¹(X − x), L diagonal."""
    if isinstance(mu, Quantiles) or not isinstance(mu.domain, Box):
        return None
    factor = cast(Wasserstein, metric).factor(mu)
    root = mu.w[..., None].sqrt()
    if factor is not None:
        root = root / factor.diagonal(dim1=-2, dim2=-1)[..., None, :]
    ends = (mu.x.new_tensor(end) for end in (mu.domain.lower, mu.domain.upper))
    low, high = (((end - mu.x) * root).flatten(-2).reshape(mu.batch.numel(), -1) for end in ends)
    return Bounds(low, high)


def _objective(F: Functional, mu: Nodal, chart: Chart, tau: float) -> Objective:
    """Coordinates (items, n·d) ↦ F + d²/(2·tau) and its gradient; infinite where quantiles cross."""

    def f(y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            x, distance2 = chart(y.reshape(mu.points.shape))
            crossed = _crossed(mu, x)
            energy = F(_moved(mu, torch.where(crossed[..., None, None], mu.points, x)))
            (gradient,) = torch.autograd.grad((energy + distance2 / (2 * tau)).sum(), y)
        value = torch.where(crossed, torch.inf, (energy + distance2 / (2 * tau)).detach())
        return value.reshape(-1), gradient

    return f


def _crossed(mu: Nodal, x: Tensor) -> Tensor:
    """Where quantiles have lost their order or met, (*batch,)."""
    if not isinstance(mu, Quantiles):
        return torch.zeros(mu.batch, dtype=torch.bool, device=x.device)
    gaps = x[..., 0].diff(dim=-1)
    return ((gaps < 0) | ((gaps == 0) & (mu.gaps > 0))).any(-1)


def _moved(mu: Nodal, x: Tensor) -> Measure:
    if not isinstance(mu, Particles):
        return mu.with_state(x=x)
    inside = x + (mu.domain.wrap(x) - x).detach()  # the gradient does not turn round where rounding crosses a wall
    return mu.with_state(x=inside, log_density=None)


def _size(F: Functional, mu: Nodal) -> Tensor:
    """Σ |c·f(μ)| over the terms of F (items,), each checked to be finite and differentiable in the positions."""
    total = mu.points.new_zeros(mu.batch)
    with torch.enable_grad():
        moved = _moved(mu, mu.points.detach().clone().requires_grad_())
        for c, f in F.terms:
            value = f(moved)
            if not value.requires_grad:
                raise TypeError(
                    f"{type(f).__name__} is not differentiable by autograd in the positions: write it with torch "
                    "operations, without .detach(), .item() or NumPy"
                )
            if not value.isfinite().all():
                bad = value[~value.isfinite()][0].item()
                raise ValueError(f"{type(f).__name__} is {bad} at the start; it must be finite where the step begins")
            total = total + (c * value.detach()).abs()
    return total.reshape(-1)


def _start(f: Objective, origin: Tensor, covector: Tensor | None, tau: float) -> Tensor:
    """The previous step's covector where it lowers the objective, the old points elsewhere."""
    if covector is None:
        return origin
    warm = tau * covector
    better = (f(warm)[0] < f(origin)[0])[:, None]
    return torch.where(better, warm, origin)


def _stats(best: Minimum, distance2: Tensor, batch: torch.Size, tau: float) -> Stats:
    return Stats(
        converged=best.converged.reshape(batch),
        iterations=best.iterations.reshape(batch),
        residual=best.residual.reshape(batch),
        objective=best.value.reshape(batch),
        distance2=distance2,
        message="L-BFGS",
        warm={"covector": best.x / tau},
    )


def _inverse_root(mu: Nodal) -> Tensor:
    """1/√w, 0 where w = 0: (*batch, n, 1)."""
    w = mu.w[..., None]
    return torch.where(w > 0, w.rsqrt(), 0)


def _rounding(metric: Metric, mu: Nodal) -> Tensor:
    """A hundred roundings of the positions, as a distance (items,)."""
    factor = metric.factor(mu) if isinstance(metric, Wasserstein) else None
    x = mu.points
    z = x if factor is None else solve_rows(factor, x)
    size = (mu.w * z.square().sum(-1)).sum(-1).sqrt()
    return 100 * torch.finfo(x.dtype).eps * size.reshape(-1)
