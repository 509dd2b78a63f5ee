"""Prox steps of fields on a lattice by maps of modes, sites and blocks, with the carried log-density kept exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from ..functionals import Functional, Internal
from ..lattice import Lattice
from ..measures import Measure, Particles, Spectral
from ..metrics import Metric, Wasserstein
from .base import OnFailure, Out, Stats, check_tau, report, require, slowest
from .feature_basis import Basis, Hermite
from .fitting import Objective, carries_entropy, differentiated, shortened, some, split, whitening
from .lattice_frames import Frame, ModePairs, shifted_blocks
from .lbfgs import minimise

FIT = 1e-3  # each layer is fitted to this part of its first gradient: the next sweep goes on from there
FIT_STEPS = 30


@dataclass(frozen=True, eq=False)
class BlockSpins:
    """argmin of F(T#μ) + E|T(x) − x|²_{Q⁻¹}/(2·tau) over compositions T of separable maps of a lattice, with ∇T > 0.

    A layer moves z = Q^{−½}x by z + Uᵀs(Uz), where the rows of U are orthonormal and s acts on each coordinate alone:
    the modes ±k by an affine s of their own, then the normalised sums over blocks of the `sizes`, at every shift by
    half a block, by one polynomial s of Hermite `degree` for all blocks (1: the sites; the side of the lattice: the
    magnetisation). Each layer is the gradient of a convex function in the metric Q, and log|det ∇T| = Σ log(1 + s') is
    exact, so a carried log-density stays exact; O(n·K·N) memory for N sites and K = `degree`. Sites and blocks are what
    a renormalised potential depends on while it is nearly local (Wilson, Kogut 1974; the local potential
    approximation).

    Layers are fitted one after the other, in sweeps, until a sweep lowers the objective by less than `tol` of the
    descent so far (`residual` is that part). A share `held_out` of the particles takes no part in the fits: a layer is
    shortened until it lowers the objective on them too, and left out where it does not. `distance2` is the cost of T,
    which bounds the squared distance from above and tends to it, relatively, as tau → 0. Default sizes: the whole
    lattice, 1, 2. Used when asked for by solver= only.
    """

    lattice: Lattice
    sizes: tuple[int, ...] | None = None
    degree: int = field(default=4, kw_only=True)
    held_out: float = field(default=0.2, kw_only=True)
    tol: float = field(default=1e-2, kw_only=True)
    max_sweeps: int = field(default=10, kw_only=True)
    on_failure: OnFailure = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share of the particles, in [0, 1), not {self.held_out}")
        if not self.tol > 0 or self.max_sweeps < 1:
            raise ValueError(f"BlockSpins needs tol > 0 and max_sweeps ≥ 1, not {self.tol} and {self.max_sweeps}")
        sizes = self.sizes
        if sizes is None:
            side = max(self.lattice.shape)
            sizes = (side, 1, *((2,) if all(n % 2 == 0 for n in self.lattice.shape) and side > 2 else ()))
        object.__setattr__(self, "sizes", tuple(dict.fromkeys(sizes)))
        assert self._frames

    @cached_property
    def _frames(self) -> tuple[tuple[Frame, Basis], ...]:
        blocks = [frame for size in self.sizes or () for frame in shifted_blocks(self.lattice, size)]
        return (ModePairs(self.lattice), Hermite(2)), *((frame, Hermite(self.degree)) for frame in blocks)

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Particles):
            return f"it moves Particles, not a {type(mu).__name__}"
        if mu.dim != self.lattice.sites:
            return f"its lattice has {self.lattice.sites} sites, the fields {mu.dim}"
        if not isinstance(metric, Wasserstein):
            return f"it needs a metric with an optimal map, Wasserstein(), not {type(metric).__name__}"
        if metric.Q is not None and not (isinstance(metric.Q, Spectral) and metric.Q.lattice == self.lattice):
            return "Q must be Spectral on its lattice"
        return carries_entropy(F, mu)

    @torch.no_grad()
    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        mu, metric = cast(Particles, mu), cast(Wasserstein, metric)
        check_tau(tau, F, slowest(metric))
        problem, parts = Problem(F, cast(Any, metric.Q), tau), split(mu, self.held_out)
        nu, way = mu, torch.zeros_like(mu.x)
        layers: list[Layer] = []
        start = value = problem.value(nu, way)
        done, part = torch.zeros_like(value, dtype=torch.bool), torch.ones_like(value)
        sweeps = torch.zeros_like(value, dtype=torch.int64)
        for _ in range(self.max_sweeps):
            sweeps, before = sweeps + ~done, value
            for frame, basis in self._frames:
                layer, nu, way = self._fit(Layer.at(frame, basis, problem, nu), nu, way, parts, ~done)
                layers.append(layer)
            value = problem.value(nu, way)
            part = torch.where(done, part, (before - value) / (start - value).clamp_min(torch.finfo(value.dtype).tiny))
            done = done | (part <= self.tol)
            if done.all():
                break
        stats = Stats(done, sweeps, part, value, problem.cost(nu, way), map=_composed(layers))
        advice = "raise max_sweeps or tol, give more particles, or take smaller steps"
        return Out(nu, report(stats, self, advice, self.on_failure))

    def _fit(
        self, layer: Layer, nu: Particles, way: Tensor, index: tuple[Tensor, Tensor], active: Tensor
    ) -> tuple[Layer, Particles, Tensor]:
        """The layer with its coefficients, and the particles and their way after it."""
        features = layer.features(nu.x)
        (J, S), (held, _) = (layer.problem_on(nu, way, features, rows) for rows in index)
        zero = nu.x.new_zeros(nu.batch.numel(), S[..., 0].numel() // nu.batch.numel())

        def mixed(S: Tensor, y: Tensor) -> Tensor:
            return (S @ y.reshape(*S.shape[:-1], 1)).reshape(y.shape)

        def f(y: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = differentiated(J, mixed(S, y))
            return value, mixed(S.mT, gradient)

        value, slope = f(zero)
        noise = 100 * torch.finfo(zero.dtype).eps * (1 + value.abs())
        tol = torch.maximum(FIT * slope.norm(dim=-1), noise)
        best = minimise(f, zero, tol=tol, scale=1.0, noise=noise, max_iter=FIT_STEPS)
        c, _ = shortened(held, mixed(S, best.x))
        c = torch.where(active.reshape(-1, 1), c, 0.0)
        layer = replace(layer, c=c.reshape(S.shape[:-1]))
        return layer, *layer.move(nu, way, features)


@dataclass(frozen=True, eq=False)
class Problem:
    """F(ν) + E|ν − start|²_{Q⁻¹}/(2·tau) of particles that started at those of μ."""

    F: Functional
    Q: Spectral | None
    tau: float

    @cached_property
    def root(self) -> Spectral | None:
        """Q^½; None for the identity."""
        return None if self.Q is None else self.Q.sqrt()

    def whiten(self, x: Tensor) -> Tensor:
        """Q^{−½}x."""
        return x if self.root is None else x @ self.root.inverse()

    def colour(self, z: Tensor) -> Tensor:
        """Q^½z."""
        return z if self.root is None else z @ self.root

    def value(self, nu: Particles, way: Tensor) -> Tensor:
        """The objective where particles have come z = `way` from their start, (*batch,)."""
        return self.F(nu) + self.cost(nu, way) / (2 * self.tau)

    def cost(self, nu: Particles, way: Tensor) -> Tensor:
        return (nu.w * way.square().sum(-1)).sum(-1)


@dataclass(frozen=True, eq=False)
class Layer:
    """z + Uᵀs(Uz), s = σΣ_k c_kh_k'((y − m)/σ) with the mean m, the spread σ and the coefficients c of each group."""

    frame: Frame
    basis: Basis
    problem: Problem
    group: Tensor  # of each coordinate, (m,)
    mean: Tensor  # of each coordinate, (*batch, m)
    scale: Tensor
    c: Tensor | None = None  # (*batch, groups, K)

    @classmethod
    def at(cls, frame: Frame, basis: Basis, problem: Problem, nu: Particles) -> Layer:
        """Without coefficients yet, in units of the particles."""
        y, group = frame.take(problem.whiten(nu.x)), frame.groups(nu.x)
        mean = _pooled((nu.w[..., None] * y).sum(-2), group)
        scale = _pooled((nu.w[..., None] * (y - mean[..., None, :]).square()).sum(-2), group).sqrt()
        if not (scale > 100 * torch.finfo(scale.dtype).eps * y.abs().amax(-2)).all():
            raise ValueError("the fields have no spread in a mode or block, so features do not tell them apart")
        return cls(frame, basis, problem, group, mean, scale)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """σh' and h'' at each coordinate of points x, (*batch, n, m, K)."""
        y = self.frame.take(self.problem.whiten(x))
        slopes, bends = self.basis.derivatives(((y - self.mean[..., None, :]) / self.scale[..., None, :])[..., None])
        return self.scale[..., None, :, None] * slopes[..., 0], bends[..., 0, 0]

    def shift(self, c: Tensor, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Uᵀs in z, (*batch, n, N), and 1 + s', (*batch, n, m)."""
        each = c[..., self.group, :]
        s, slope = (torch.einsum("...mk,...nmk->...nm", each, part) for part in parts)
        return self.frame.give(s), 1 + slope

    def problem_on(
        self, nu: Particles, way: Tensor, features: tuple[Tensor, Tensor], rows: Tensor
    ) -> tuple[Objective, Tensor]:
        """J(c) on some of the particles, which have come z = `way` so far; and S for each group, c = Sy.

        J is infinite where ∇T is not positive. In y the Hessian of the cost and the entropy at c = 0 is the identity.
        """
        nu, way = some(nu, rows), way[..., rows, :]
        features = (features[0][..., rows, :, :], features[1][..., rows, :, :])

        def J(c: Tensor) -> Tensor:
            step, slope = self.shift(c.reshape(*nu.batch, -1, features[0].shape[-1]), features)
            inside = (slope > 0).flatten(-2).all(-1)
            moved = self._image(nu, step, torch.where(slope > 0, slope, 1.0))
            return torch.where(inside, self.problem.value(moved, way + step), torch.inf).reshape(-1)

        return J, self._coordinates(nu.w, features)

    def move(self, nu: Particles, way: Tensor, features: tuple[Tensor, Tensor]) -> tuple[Particles, Tensor]:
        """The particles after the layer, their log-density carried, and the way they have come."""
        assert self.c is not None
        step, slope = self.shift(self.c, features)
        return self._image(nu, step, slope), way + step

    def map(self, x: Tensor) -> Tensor:
        """T(x) for points (*batch, n, N)."""
        assert self.c is not None
        return x + self.problem.colour(self.shift(self.c, self.features(x))[0])

    def _image(self, nu: Particles, step: Tensor, slope: Tensor) -> Particles:
        log_density = None if nu.log_density is None else nu.log_density - slope.log().sum(-1)
        return nu.with_state(x=nu.x + self.problem.colour(step), log_density=log_density)

    def _coordinates(self, w: Tensor, parts: tuple[Tensor, Tensor]) -> Tensor:
        """S, (*batch, groups, K, K)."""
        entropy = sum(c for c, f in self.problem.F.terms if isinstance(f, Internal))
        pairs = [torch.einsum("...n,...nmk,...nml->...mkl", w, part, part) for part in parts]
        H = pairs[0] / self.problem.tau + entropy * pairs[1]
        groups = H.new_zeros(*H.shape[:-3], int(self.group.max()) + 1, *H.shape[-2:])
        return whitening(groups.index_add(-3, self.group, H))


def _pooled(values: Tensor, group: Tensor) -> Tensor:
    """The mean of values (*batch, m) over each group, at each of its coordinates."""
    count = int(group.max()) + 1
    total = values.new_zeros(*values.shape[:-1], count).index_add(-1, group, values)
    return (total / torch.bincount(group, minlength=count))[..., group]


def _composed(layers: list[Layer]) -> Callable[[Tensor], Tensor]:
    def T(x: Tensor) -> Tensor:
        for layer in layers:
            x = layer.map(x)
        return x

    return T
