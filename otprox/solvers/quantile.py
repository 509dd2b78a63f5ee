"""The prox of any sum of potential, internal and interaction energies on 1-D quantiles, by Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..functionals import Functional, Interaction, Potential
from ..functionals.local_prox import offers
from ..measures import Measure, Quantiles
from ..measures.base import StepTooLarge
from ..metrics import Metric, Wasserstein
from .base import OnFailure, Out, Stats, check_positive, check_tau, report, require
from .quantile_energy import Pairs, QuantileEnergy, derivatives
from .quantile_free import on_cone, separable
from .quantile_newton import Linear, Solution, inverse, minimise


@dataclass(frozen=True)
class Quantile:
    """argmin_x (1/n) [Σ V(x_i) − Σ log(n(x_{i+1} − x_i)) + (1/2n) ΣΣ W(x_i − x_j) + Σ (x_i − y_i)²/(2 tau Q)],

    with the internal energies of F in place of the logarithm. In one dimension W2 is flat in the quantiles, so this is
    the implicit step of the discretised F itself (Blanchet, Calvez, Carrillo 2008). n = 10⁶ is a matter of a second
    without an interaction; with one, every conjugate gradient step sums over pairs (in O(n) for kernels that can).

    tol: relative W2 distance to the minimiser at which to stop, √(gᵀH⁻¹g·tau·Q/n) over the spread of μ; 1e-9 in float64
    and 1e-5 in float32 unless given. A last Newton step follows it, so results are better than tol by far.
    Kinks: V = |x| and W = |x| are exact without an internal energy; with one, a quantile that would rest on a kink of V
    can stall Newton's method, and Stats says so.

    Raises ValueError when tau is not below 1/λ for a λ-concave V or W: λ from `F.convexity()` when known, else from
    the lowest V'' on the hull of the old and the new quantiles, and the lowest W'' on the lengths in it.
    Gradients flow to the quantiles of μ and to tensors inside V, by the implicit function theorem; not to W or Q.
    """

    tol: float | None = None
    max_iter: int = 100
    on_failure: OnFailure = "warn"

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Quantiles):
            return f"it works on Quantiles, not on {type(mu).__name__}; Quantiles.of(mu, n) converts 1-D measures"
        if not isinstance(metric, Wasserstein):
            return f"it works in Wasserstein, not in {type(metric).__name__}"
        try:
            terms = F.terms
        except TypeError as error:
            return str(error)
        for c, f in terms:
            if not (isinstance(f, Potential | Interaction) or offers(f, "per_mass")):
                return f"{type(f).__name__} is not a potential, internal or interaction energy"
            if c < 0 and offers(f, "per_mass"):
                return f"{type(f).__name__} has the negative coefficient {c:g}, which makes the step unbounded below"
        return None

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_positive(tau)
        Q = metric.mobility(mu)[..., 0, 0]  # type: ignore[attr-defined]
        y = mu.x[..., 0]  # type: ignore[attr-defined]
        energy = QuantileEnergy.of(F, y, (1 / (tau * Q)).expand(y.shape[:-1])[..., None])
        with torch.no_grad():
            known = _known_limit(F, tau, Q)
            if not known:
                _check_curvature(energy, tau, energy.y)
            solution = self._solve(energy)
            if not known:
                _check_curvature(energy, tau, torch.cat([energy.y, solution.x], -1))
        x = _attached(energy, y, solution.x)
        new = mu.with_state(x=x.to(y.dtype)[..., None])
        stats = _stats(energy, solution, tau)
        if x.requires_grad:  # by the envelope theorem, as x moves along the minimisers
            distance2 = (new.x - mu.x)[..., 0].square().mean(-1) / Q  # type: ignore[attr-defined]
            stats = replace(stats, objective=F(new) + distance2 / (2 * tau), distance2=distance2)
        return Out(new, report(stats, self, "raise max_iter or take smaller steps", self.on_failure))

    def _solve(self, energy: QuantileEnergy) -> Solution:
        tol = self.tol or (1e-9 if energy.dtype == torch.float64 else 1e-5)
        if energy.barrier:
            return minimise(energy, tol, self.max_iter)
        return (on_cone if energy.interactions else separable)(energy, tol, self.max_iter)


def _known_limit(F: Functional, tau: float, Q: Tensor) -> bool:
    """Check tau when the convexity of F is known and finite; W with a concave kink at 0 is convex between quantiles."""
    convexity = F.convexity()
    if convexity is None or convexity == -torch.inf:
        return False
    check_tau(tau, F, scale=1 / Q.max().item())
    return True


def _check_curvature(energy: QuantileEnergy, tau: float, x: Tensor) -> None:
    """Refuse a step that is not convex on the hull of x, by the lowest V'' and W'' found there."""
    lower, upper = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    lowest = torch.zeros_like(lower)

    def potentials(z: Tensor) -> Tensor:
        parts = [c * derivatives(f, z.to(energy.dtype)[..., None])[2] for c, f in energy.potentials]
        return torch.stack(parts).sum(0).to(z)

    def interactions(z: Tensor) -> Tensor:
        return torch.stack([c * Pairs(f.W).at(z.to(energy.dtype))[2] for c, f in energy.interactions]).sum(0).to(z)

    if energy.potentials:
        lowest = lowest + _lowest(potentials, lower, upper)
    if energy.interactions:
        length = upper - lower
        lowest = lowest + _lowest(interactions, 1e-6 * length, length).clamp_max(0)
    convexity = energy.kappa + lowest
    if (convexity <= 1e-9 * energy.kappa).any():
        item = int((convexity / energy.kappa).flatten().argmin())
        steepest, kappa = lowest.flatten()[item].item(), energy.kappa.flatten()[item].item()
        raise StepTooLarge(
            f"tau = {tau:.6g} is not below the convexity limit {tau * kappa / -steepest:.6g}: V'' and W'' go down to "
            f"{steepest:.6g} between {lower.flatten()[item].item():.6g} and {upper.flatten()[item].item():.6g}, so the "
            "implicit step may not exist or not be unique; take smaller steps"
        )


def _lowest(f: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Tensor:
    """The lowest value of f on [lower, upper] (*batch, 1): on 1025 points, then finer around the lowest."""
    best = torch.full_like(lower, torch.inf)
    for points in (1025, 129, 129, 129):
        t = torch.linspace(0, 1, points, dtype=lower.dtype, device=lower.device)
        values = torch.nan_to_num(f(lower + (upper - lower) * t), nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        value, i = values.min(-1, keepdim=True)
        best = torch.minimum(best, value)
        step = (upper - lower) / (points - 1)
        centre = lower + step * i
        lower, upper = torch.maximum(lower, centre - step), torch.minimum(upper, centre + step)
    return torch.where(torch.isfinite(best), best, 0.0)


def _attached(energy: QuantileEnergy, y: Tensor, x: Tensor) -> Tensor:
    """x with gradients: the graph of x − H⁻¹∇E(x), whose derivative is that of the minimiser."""
    wanted = torch.is_grad_enabled() and (
        y.requires_grad or any(_learns(f, x[..., :1].to(energy.dtype)) for _, f in energy.potentials)
    )
    if not wanted:
        return x
    with torch.no_grad():
        s = energy.at(x)
        solve = _settled(inverse(energy, x, s), s.gradient / s.main, energy, x)
    gradient = s.gradient - energy.kappa * (y.to(x) - y.detach().to(x))
    for c, f in energy.potentials:
        points = x.to(energy.dtype)[..., None].requires_grad_()
        (slope,) = torch.autograd.grad(f.value(points).sum(), points, create_graph=True)
        gradient = gradient + c * (slope - slope.detach())[..., 0].to(x)
    return x - _Solve.apply(gradient - s.gradient, solve)


def _learns(f: Potential, x: Tensor) -> bool:
    """Whether V holds tensors that require gradients."""
    return f.value(x[..., None]).requires_grad


def _settled(solve: Linear, error: Tensor, energy: QuantileEnergy, x: Tensor) -> Linear:
    """Without an internal energy, quantiles that rest on a kink do not move with y."""
    if energy.barrier or energy.interactions:
        return solve
    rests = error.abs() > 1e-6 * (x - energy.y).abs().amax(-1, keepdim=True)
    return lambda v: solve(v).masked_fill(rests, 0.0)


class _Solve(torch.autograd.Function):
    """H⁻¹ as a symmetric linear map, in the forward and in the backward direction."""

    @staticmethod
    def forward(ctx: Any, rhs: Tensor, solve: Linear) -> Tensor:
        ctx.solve = solve
        return solve(rhs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(grad.contiguous()), None


def _stats(energy: QuantileEnergy, solution: Solution, tau: float) -> Stats:
    x, y, n, dtype = solution.x, energy.y, energy.n, energy.dtype

    def transport(points: Tensor) -> Tensor:
        """Old points (*batch, m, 1) to new ones: linear between quantiles, a shift beyond the last."""
        at = points[..., 0].double().expand(*y.shape[:-1], -1).contiguous()
        right = torch.searchsorted(y.contiguous(), at, right=True).clamp(1, n - 1)
        y0, y1 = y.gather(-1, right - 1), y.gather(-1, right)
        theta = torch.where(y1 > y0, (at - y0) / torch.where(y1 > y0, y1 - y0, 1.0), 1.0).clamp(0, 1)
        moved = torch.lerp(x.gather(-1, right - 1), x.gather(-1, right), theta) - torch.lerp(y0, y1, theta)
        return (at + moved).to(points.dtype)[..., None]

    return Stats(
        converged=solution.converged,
        iterations=solution.iterations,
        residual=solution.residual.to(dtype),
        objective=(solution.value / n).to(dtype),
        distance2=(tau * energy.kappa[..., 0] * (x - y).square().mean(-1)).to(dtype),
        message="relative Newton decrement",
        map=transport,
    )
