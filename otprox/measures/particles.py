"""Weighted particles Σ w_i δ_{x_i}, with a log-density at the particles when one is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import pairwise
from ..domains import Domain, Euclidean
from .base import (
    Field,
    Measure,
    Tangent,
    Velocity,
    as_float,
    check_alike,
    check_noise,
    check_weights,
    common_batch,
    representation,
)
from .cells import histogram
from .grid import Grid
from .spectral import Spectral


@dataclass(frozen=True, eq=False)
class Particles(Measure):
    """Σ_i w_i δ_{x_i}.

    x: (*batch, n, d); w: (*batch, n), uniform unless given. `log_density` (*batch, n) is the log-density of the law
    that the particles sample, at the particles; it is carried along maps whose Jacobian is known (`push` with
    log-determinants, `move` along differentiable fields) and dropped by noise. `domain` is R^d unless given.
    """

    x: Float[Tensor, "*batch n d"]
    w: Float[Tensor, "*batch n"]
    log_density: Float[Tensor, "*batch n"] | None
    domain: Domain

    def __init__(self, x: Any, w: Any = None, log_density: Any = None, domain: Domain | None = None) -> None:
        x = as_float(x, "x")
        if x.ndim < 2 or x.shape[-2] == 0:
            raise ValueError(
                f"x must have shape (*batch, n, d) with n ≥ 1, not {tuple(x.shape)}; for 1-D use x[:, None]"
            )
        shape = x.shape[:-1]
        if w is None:
            w = x.new_full((), 1 / shape[-1]).expand(shape)
        else:
            w = check_weights(_per_particle(w, "w", x), "weights w")
        if log_density is not None:
            log_density = _per_particle(log_density, "log_density", x)
        domain = Euclidean() if domain is None else domain
        if not isinstance(domain, Domain):
            raise TypeError(f"domain must be Euclidean(), Torus(period) or Box(lower, upper), not {domain!r}")
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "x", self.domain.wrap(x))
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "log_density", log_density)

    @classmethod
    def from_log_prob(cls, log_prob: Field, x: Any, volumes: Any, domain: Domain | None = None) -> Particles:
        """The density proportional to exp(log_prob) on fixed points x (*batch, n, d), each with the volume of its cell.

        volumes: (*batch, n), or one number, as |box|/n for points that fill a box evenly; Σ f(x_i)·volume_i is ∫ f dx.
        """
        x = as_float(x, "x")
        volumes = as_float(volumes, "volumes", like=x).expand(x.shape[:-1])
        if not (volumes > 0).all():
            raise ValueError(f"volumes must be positive; the smallest is {volumes.min().item():.6g}")
        logs = log_prob(x)
        if not (logs < torch.inf).all():
            raise ValueError("log_prob is NaN or +infinity at some points")
        return cls(x, torch.softmax(logs + volumes.log(), -1), torch.zeros_like(volumes), domain)._reweighted(
            logs, volumes
        )

    @property
    def batch(self) -> torch.Size:
        return self.x.shape[:-2]

    @property
    def dim(self) -> int:
        return self.x.shape[-1]

    @property
    def anchor(self) -> Tensor:
        return self.x

    @property
    def points(self) -> Tensor:
        return self.x

    @property
    def weights(self) -> Tensor:
        return self.w

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return (self.w[..., None, :] @ self.x)[..., 0, :]

    @property
    def cov(self) -> Tensor:  # type: ignore[override]
        centred = self.x - self.mean[..., None, :]
        return (self.w[..., None] * centred).mT @ centred

    def expect(self, f: Field) -> Tensor:
        values = f(self.x)
        if values.ndim == self.w.ndim:
            return (self.w * values).sum(-1)
        return (self.w[..., None, :] @ values)[..., 0, :]

    def push(self, T: Callable[[Tensor], Any]) -> Particles:
        y = T(self.x)
        log_density = None
        if isinstance(y, tuple):
            y, log_det = y
            if common_batch("log|det ∇T|", log_det.shape, "x", self.w.shape) != self.w.shape:
                raise ValueError(
                    f"log|det ∇T| must be {tuple(self.w.shape)}, one a particle, not {tuple(log_det.shape)}"
                )
            if self.log_density is not None:
                log_density = self.log_density - log_det
        if y.shape != self.x.shape:
            raise ValueError(f"the map sends points of shape {tuple(self.x.shape)} to shape {tuple(y.shape)}")
        return self.with_state(x=self.domain.wrap(y), log_density=log_density)

    def move(self, tangent: Tangent, tau: float) -> Particles:
        if not isinstance(tangent, Velocity):
            raise TypeError(f"Particles move along a Velocity, not a {type(tangent).__name__}; use a Density on a Grid")
        if self.log_density is None:
            return self.push(lambda x: x.add(tangent.field(x), alpha=tau))

        def carry(x: Tensor) -> tuple[Tensor, Tensor]:
            v, slope = tangent.with_jacobian(x)
            eye = torch.eye(self.dim, dtype=x.dtype, device=x.device)
            return x + tau * v, torch.linalg.slogdet(eye + tau * slope).logabsdet

        return self.push(carry)

    def diffuse(self, cov: Any, generator: torch.Generator | None = None) -> Particles:
        """Add N(0, cov) noise to every particle, cov a matrix or a Spectral. Needs a generator; drops a log-density."""
        if generator is None:
            raise ValueError("noise on Particles needs an explicit generator: Heat(generator=torch.Generator())")
        root = _root(cov, self)
        z = torch.randn(self.x.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
        line = isinstance(root, Tensor) and self.dim == 1
        x = torch.addcmul(self.x, z, root) if line else self.x + z @ root.mT
        return self.with_state(x=self.domain.wrap(x), log_density=None)

    def to_particles(self, n: int, generator: torch.Generator) -> Particles:
        """n particles of equal weight drawn from these with replacement, each with probability w."""
        total = self.w.cumsum(-1)
        u = torch.rand(*self.batch, n, generator=generator, dtype=self.x.dtype, device=self.x.device)
        chosen = torch.searchsorted(total, u * total[..., -1:], right=True).clamp_max(total.shape[-1] - 1)
        x = self.x.gather(-2, chosen[..., None].expand(*chosen.shape, self.dim))
        log_density = None if self.log_density is None else self.log_density.gather(-1, chosen)
        return Particles(x, log_density=log_density, domain=self.domain)

    def to_density(self, grid: Grid) -> Any:
        """The histogram of the particles as a Density: the weight in each cell over its volume, with sampling noise."""
        return representation("Density").from_masses(histogram(self.x, self.w, grid), grid)

    def convolve(self, W: Field, x: Tensor | None = None) -> Tensor:
        x = self.x if x is None else x
        return pairwise.convolve(W, x, self.x, self.w, self.domain)

    def log_prob(self, x: Tensor | None = None) -> Tensor:
        if self.log_density is None:
            raise TypeError(self._no_density("log-density"))
        if x is not None and x is not self.x:
            raise TypeError(_CARRIED)
        return self.log_density

    @property
    def masses(self) -> Tensor:
        """Mass of each point: w."""
        return self.w

    @property
    def volumes(self) -> Tensor:
        """The volume that each point stands for, w/ρ with the log-density log ρ: Σ f(x_i)·volume_i ≈ ∫ f dx."""
        if not (self.w > 0).all():
            bad = int((self.w <= 0).sum())
            raise ValueError(f"{bad} particles have weight 0, so no volume w/ρ: use Particles.from_log_prob")
        return self.w / self.log_prob().exp()

    def with_log_prob(self, log_rho: Tensor) -> Particles:
        """The density proportional to exp(log_rho), (*batch, n), on the same points with the same volumes."""
        return self._reweighted(log_rho, self.volumes)

    def _reweighted(self, log_rho: Tensor, volumes: Tensor) -> Particles:
        """Nowhere less than 1e-150 (float32: 1e-19) of its maximum, so that no volume is lost."""
        floor = math.log(torch.finfo(log_rho.dtype).tiny) / 2
        logs = (log_rho - log_rho.amax(-1, keepdim=True)).clamp_min(floor)
        logs = logs - torch.logsumexp(logs + volumes.log(), -1, keepdim=True)
        if not torch.isfinite(logs).all():
            raise FloatingPointError("a density came out NaN or infinite")
        return self.with_state(w=logs.exp() * volumes, log_density=logs)

    def score(self, x: Tensor | None = None) -> Tensor:
        raise TypeError(self._no_density("score") if self.log_density is None else _CARRIED)

    def expect_log(self, u: Field) -> Tensor:
        return (self.w * u(self.log_prob())).sum(-1)


def _root(cov: Any, mu: Particles) -> Any:
    """L with LLᵀ = cov, for noise on μ."""
    if isinstance(cov, Spectral):
        check_alike(cov.values, "the covariance of the noise", mu.x)
        return cov.sqrt()
    check_noise(cov, mu)
    factor, info = torch.linalg.cholesky_ex(cov)
    if info.any():  # cov singular, for instance degenerate noise: the symmetric root
        values, vectors = torch.linalg.eigh(cov)
        factor = vectors * values.clamp_min(0).sqrt()[..., None, :]
    return factor


def _per_particle(value: Any, name: str, x: Tensor) -> Tensor:
    tensor = as_float(value, name, like=x)
    batch = common_batch(name, tensor.shape[:-1], "x", x.shape[:-2])
    if tensor.shape[-1:] != x.shape[-2:-1] or batch != x.shape[:-2]:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)} but x has {tuple(x.shape)}: one entry a particle")
    return tensor.expand(x.shape[:-1])


_CARRIED = (
    "the carried log-density is known at the particles only, not at other points and without its gradient; what would "
    "work: Blob(width) in place of Entropy, solver=solvers.GaussianMap(), or Gaussian.fit(mu)"
)
