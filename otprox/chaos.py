"""Propagation of chaos as a study: particles beside independent copies of their limit, driven by the same noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .flow import Tick
from .functionals import Functional
from .measures import Density, Measure, Particles
from .measures.trigonometric import at_centres


@dataclass(frozen=True, eq=False)
class Coupling:
    """|X − X̄|² averaged over the particles of each replica, `distance2` (times, replicas), at `times`."""

    times: Tensor
    distance2: Tensor

    @property
    def mean(self) -> Tensor:
        """E|X − X̄|² at each time, (times,)."""
        return self.distance2.mean(-1)

    @property
    def error(self) -> Tensor:
        """Its standard error, (times,)."""
        return self.distance2.std(-1) / math.sqrt(self.distance2.shape[-1])


def synchronous(
    law: Iterable[Tick], F: Functional, noise: float, *, n: int, replicas: int, generator: torch.Generator
) -> Coupling:
    """Synchronous coupling (Sznitman 1991) of `replicas` systems of n particles with their mean-field limit:

    dXᵢ = −∇φ[μᴺ](Xᵢ)dt + (2·noise)^½dBᵢ and dX̄ᵢ = −∇φ[μ_t](X̄ᵢ)dt + (2·noise)^½dBᵢ, φ[μ] = δF/δμ, X̄ᵢ(0) = Xᵢ(0).

    `law` is the limit μ_t: a path such as `flow(PseudoSpectral(F + noise * Entropy()), mu0, times)`, whose intervals
    are the steps (Euler–Maruyama, so the error is first order in them). F has no Entropy in it: noise stands for it.
    """
    if not noise >= 0:
        raise ValueError(f"noise must be ≥ 0, not {noise}")
    x = copy = None
    seen, times = [], []
    for tick in law:
        if x is None or copy is None:
            x = copy = _samples(tick.before, n, replicas, generator)
        G, tau, limit = F.at(tick.t0), tick.t1 - tick.t0, _smooth(tick.before)
        z = torch.randn(x.x.shape, generator=generator, dtype=x.x.dtype, device=x.x.device)
        kick = math.sqrt(2 * noise * tau) * z
        x, copy = _moved(x, kick - tau * G.gradient(x)), _moved(copy, kick - tau * G.gradient(limit, copy.x))
        seen.append(x.domain.displacement(x.x, copy.x).square().sum(-1).mean(-1))
        times.append(tick.t1)
    if not times:
        raise ValueError("the law has no steps; give flow(step, mu0, times)")
    return Coupling(torch.tensor(times, dtype=torch.float64), torch.stack(seen))


@dataclass(frozen=True, eq=False)
class Rates:
    """E|X − X̄|² at the last time for systems of several `sizes`, with standard errors."""

    sizes: tuple[int, ...]
    mean: Tensor
    error: Tensor

    @property
    def order(self) -> float:
        """The p of the best fit C·n^−p, by least squares of logarithms: 1 where chaos propagates."""
        x = torch.tensor(self.sizes, dtype=torch.float64).log()
        y = self.mean.double().log()
        return -((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()

    def __str__(self) -> str:
        rows = [f"{'n':>8}{'E|X − X̄|²':>14}{'± ':>10}{'times n':>12}"]
        for n, mean, error in zip(self.sizes, self.mean.tolist(), self.error.tolist(), strict=True):
            rows.append(f"{n:8d}{mean:13.3e}{error:11.1e}{n * mean:12.5f}")
        return "\n".join([*rows, f"order {self.order:.3f}"])


def rates(
    law: Iterable[Tick], F: Functional, noise: float, sizes: Sequence[int], *, replicas: int = 2000, seed: int = 0
) -> Rates:
    """`synchronous` for each n of `sizes`; the same seed gives the same numbers, on the same device.

    Where all particles of a system deviate together, the standard error is (2/replicas)^½ of the mean for every n.
    """
    if len(sizes) < 2:
        raise ValueError(f"an order needs at least two sizes, not {tuple(sizes)}")
    ticks = list(law)
    rng = torch.Generator(ticks[0].before.anchor.device).manual_seed(seed)
    runs = [synchronous(ticks, F, noise, n=n, replicas=replicas, generator=rng) for n in sizes]
    return Rates(
        tuple(sizes), torch.stack([run.mean[-1] for run in runs]), torch.stack([run.error[-1] for run in runs])
    )


def _samples(mu: Measure, n: int, replicas: int, generator: torch.Generator) -> Particles:
    if mu.batch:
        raise ValueError(f"the limit is one law, without batch; it has batch shape {tuple(mu.batch)}")
    if n < 1 or replicas < 2:
        raise ValueError(f"a coupling needs n ≥ 1 particles and at least 2 replicas, not {n} and {replicas}")
    cloud = mu.to_particles(n * replicas, generator)
    assert isinstance(cloud, Particles)
    return Particles(cloud.x.reshape(replicas, n, mu.dim), domain=cloud.domain)


def _smooth(mu: Measure) -> Measure:
    """A density on a periodic grid by its values at centres, with which sums over cells are spectrally accurate."""
    if isinstance(mu, Density) and all(mu.grid.periodic):
        return mu.with_state(values=at_centres(mu.values, mu.grid))
    return mu


def _moved(mu: Particles, by: Tensor) -> Particles:
    return mu.with_state(x=mu.domain.wrap(mu.x + by))
