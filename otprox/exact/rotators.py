"""Mean-field rotators on the circle (Kuramoto–Daido): free energy, stationary states, the linearised operator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SAME = 1e-7  # states whose moments differ by less are one


@dataclass(frozen=True)
class Kuramoto:
    """dθᵢ = (K/N)Σⱼ W'(θᵢ − θⱼ)dt + dBᵢ with W = Σ_k a_k cos kθ, on a circle of length 2π; all in float64.

    The law q solves ∂t q = ½q'' − K(q(W∗q)')', the flow of F(q) = ½∫q log q − (K/2)∬W(θ − φ)q(θ)q(φ), which is
    `½·Entropy() + K·Interaction(Cosine([−a_1, −a_2, …]))`. `coefficients` are the a_k: (1,) is Kuramoto's model,
    (1, m) Daido's. Moments are r_k = ∫cos kθ dq; shapes (…, p) with p = len(coefficients). For noise σ dB divide time
    by σ² and take K/σ².

    >>> state = Kuramoto(1.5).minimiser()
    >>> round(state.r[0], 12), round(state.energy, 12)
    (0.724158717626, -0.160064001565)
    """

    K: float
    coefficients: tuple[float, ...]

    def __init__(self, K: float, coefficients: Sequence[float] = (1.0,)) -> None:
        if not isinstance(coefficients, Iterable):
            raise TypeError(f"coefficients must be a sequence (a_1, a_2, …) such as (1.0, m), not {coefficients!r}")
        a = tuple(float(c) for c in coefficients)
        if not a or not all(math.isfinite(c) for c in a):
            raise ValueError(f"coefficients must be finite numbers a_1, a_2, …, at least one; got {coefficients!r}")
        if not 0 <= K < math.inf:
            raise ValueError(
                f"K must be a finite number ≥ 0, not {K}; a repulsive interaction has negative coefficients"
            )
        object.__setattr__(self, "K", float(K))
        object.__setattr__(self, "coefficients", a)

    @cached_property
    def a(self) -> Tensor:
        """The coefficients as a tensor, (p,)."""
        return torch.tensor(self.coefficients, dtype=torch.float64)

    @property
    def threshold(self) -> float:
        """K_# = 1/max a_k, up to which the uniform state is linearly stable; infinite when no a_k is positive."""
        largest = max(self.coefficients)
        return 1 / largest if largest > 0 else math.inf

    def uniform_eigenvalues(self, count: int) -> Tensor:
        """(k²/2)(K a_k − 1), k = 1 … count, each of cos kθ and sin kθ: the linearised operator at 1/2π; (count,)."""
        k = torch.arange(1, count + 1, dtype=torch.float64)
        a = torch.nn.functional.pad(self.a, (0, max(0, count - len(self.a))))[:count]
        return k**2 / 2 * (self.K * a - 1)

    def free_energy(self, r: Tensor) -> Tensor:
        """G_K(r) = KΣa_k r_k² − log (1/2π)∫exp(2KΣa_k r_k cos kθ)dθ, (…,).

        Its critical points are the stationary states that are even, and its value there is 2(F(q) − F(1/2π)). When no
        a_k is negative its minimum is that of 2(F − F(1/2π)) over all q.
        """
        return self.K * (self.a * r * r).sum(-1) - self.log_partition(r)

    def log_partition(self, r: Tensor) -> Tensor:
        """log (1/2π)∫exp(2KΣa_k r_k cos kθ)dθ, (…,); no digits are lost as r → 0."""
        f = self._exponent(r)
        top = f.amax(-1)
        large = top + (f - top[..., None]).exp().mean(-1).log()
        small = (torch.expm1(f.clamp_max(1)) - f.clamp_max(1)).mean(-1).log1p()  # f has mean 0
        return torch.where(top < 0.5, small, large)

    def density(self, theta: Tensor, r: Tensor) -> Tensor:
        """exp(2KΣa_k r_k cos kθ)/Z at angles (n,), for r (…, p): (…, n)."""
        k = torch.arange(1, len(self.a) + 1, dtype=theta.dtype)
        exponent = (2 * self.K * self.a * r) @ torch.cos(k[:, None] * theta)
        return torch.exp(exponent - self.log_partition(r)[..., None]) / (2 * math.pi)

    def moments(self, r: Tensor, count: int | None = None) -> Tensor:
        """∫cos kθ of that density, k = 1 … count (p unless given): stationary states are r = moments(r); (…, count)."""
        return self._exponent(r).softmax(-1) @ self._cosines(count or len(self.a)).mT

    def stationary(self) -> tuple[State, ...]:
        """The even stationary states that were found, the lowest free energy first; the uniform one is among them.

        Newton's method on r = moments(r) from many starts, together with what the iteration r ← moments(r), which
        never raises G_K for a_k ≥ 0, makes of them. States that are rotations of each other count once.
        """
        starts = self._starts()
        r = torch.cat([starts, self._relaxed(starts)])
        found = [torch.zeros(len(self.a), dtype=torch.float64)]
        for candidate in self._newton(_distinct(self._newton(r, 12, 1.0)), 60, 1e-9):
            candidate = _upright(candidate)
            if all((candidate - other).abs().max() > SAME for other in found):
                found.append(candidate)
        states = [State(self, tuple(r.tolist())) for r in found]
        return tuple(sorted(states, key=lambda state: state.energy))

    def minimiser(self) -> State:
        """The stationary state of lowest free energy."""
        return self.stationary()[0]

    @cached_property
    def _nodes(self) -> Tensor:
        """Angles of the trapezoidal rule, at twice the density that the narrowest state needs."""
        return torch.arange(self._resolution, dtype=torch.float64) * (2 * math.pi / self._resolution)

    @property
    def _resolution(self) -> int:
        sharpness = 2 * self.K * sum(abs(c) * k * k for k, c in enumerate(self.coefficients, 1))
        return 2 * (64 + 8 * len(self.a) + math.ceil(6 * math.sqrt(sharpness)))

    def _cosines(self, count: int) -> Tensor:
        return torch.cos(torch.arange(1, count + 1, dtype=torch.float64)[:, None] * self._nodes)

    @cached_property
    def _basis(self) -> Tensor:
        return self._cosines(len(self.a))

    def _exponent(self, r: Tensor) -> Tensor:
        return (2 * self.K * self.a * r) @ self._basis

    def response(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """moments(r) and the covariances of cos kθ and cos lθ under that density, (…, p) and (…, p, p)."""
        p = self._exponent(r).softmax(-1)
        mean = p @ self._basis.mT
        centred = self._basis - mean[..., None]
        return mean, (p[..., None, :] * centred) @ centred.mT

    def _starts(self) -> Tensor:
        """Moments of two heaps at ±φ, shrunk: the hull of these is all that a law can have."""
        phi = torch.linspace(0, math.pi, 9 if len(self.a) > 1 else 2, dtype=torch.float64)
        k = torch.arange(1, len(self.a) + 1, dtype=torch.float64)
        sizes = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        return (sizes[:, None, None] * torch.cos(phi[:, None] * k)).flatten(0, 1)

    def _relaxed(self, r: Tensor, iterations: int = 30) -> Tensor:
        for _ in range(iterations):
            r = self.moments(r)
        return r

    def _newton(self, r: Tensor, iterations: int, tolerance: float) -> Tensor:
        """The rows of r (n, p) from which Newton's method on r − moments(r) ends with a step below `tolerance`."""
        eye = torch.eye(len(self.a), dtype=torch.float64)
        size = torch.full(r.shape[:1], math.inf, dtype=torch.float64)
        for _ in range(iterations):
            mean, cov = self.response(r)
            step = torch.linalg.solve_ex(eye - 2 * self.K * cov * self.a, (r - mean)[..., None]).result[..., 0]
            step = step.nan_to_num(0.1, 0.1, -0.1)
            size = step.norm(dim=-1)
            r = (r - step * (0.3 / size[:, None]).clamp_max(1)).clamp(-1, 1)
            if size.max() < 1e-15:
                break
        return r[size < tolerance]


@dataclass(frozen=True)
class State:
    """A stationary state q ∝ exp(2KΣa_k r_k cos kθ) by its moments r_1, …, r_p."""

    model: Kuramoto
    r: tuple[float, ...]

    @property
    def moments(self) -> Tensor:
        """r as a tensor, (p,)."""
        return torch.tensor(self.r, dtype=torch.float64)

    @property
    def energy(self) -> float:
        """2(F(q) − F(1/2π))."""
        return self.model.free_energy(self.moments).item()

    @property
    def uniform(self) -> bool:
        """Whether it is 1/2π."""
        return max(abs(r) for r in self.r) < SAME

    @property
    def symmetry(self) -> int:
        """The g for which q has period 2π/g: 1 when the first moment is not 0, 2 for a nematic state; 0 if uniform."""
        return math.gcd(*(k for k, r in enumerate(self.r, 1) if abs(r) > SAME and self.model.coefficients[k - 1]))

    def density(self, theta: Tensor) -> Tensor:
        """q at angles (n,)."""
        return self.model.density(theta, self.moments)

    def spectrum(self, count: int = 8, modes: int | None = None) -> Tensor:
        """The `count` largest eigenvalues of L_q u = ½u'' − K(q W'∗u + u W'∗q)' on ∫u = 0, (count,).

        Fourier–Galerkin with cos kθ and sin kθ, k ≤ `modes`; L_q is self-adjoint in H⁻¹(q), so they are real. Rotation
        makes 0 one of them when q is not uniform.
        """
        even, odd = self._eigenvalues(modes)
        return torch.cat([even, odd]).sort(descending=True).values[:count]

    @property
    def gap(self) -> float:
        """Minus the largest eigenvalue of L_q, the 0 of rotations apart: the rate of convergence to q when positive."""
        even, odd = self._eigenvalues(None)
        if not self.uniform:
            odd = torch.cat([odd[: (i := int(odd.abs().argmin()))], odd[i + 1 :]])
        return -max(even.max().item(), odd.max().item())

    @property
    def stable(self) -> bool:
        """Whether L_q has no positive eigenvalue, up to rounding."""
        return self.gap > -1e-11 * self._modes**2

    @property
    def _modes(self) -> int:
        return self.model._resolution // 4

    def _eigenvalues(self, modes: int | None) -> tuple[Tensor, Tensor]:
        """Those of even and of odd eigenfunctions."""
        n = modes or self._modes
        model, k = self.model, torch.arange(1, n + 1)
        r = torch.cat([torch.ones(1, dtype=torch.float64), model.moments(self.moments, 2 * n)])
        pull = torch.zeros(2 * n + 1, dtype=torch.float64)  # k·a_|k| at k ≥ 0, odd in k
        pull[1 : len(model.a) + 1] = (model.a * torch.arange(1, len(model.a) + 1))[: 2 * n]

        def column(j: Tensor) -> Tensor:
            """(K k/2) r_|k−j| (j a_|j| + (k − j) a_|k−j|): how mode j drives mode k."""
            gap = k[:, None] - j
            drive = j.sign() * pull[j.abs()] + gap.sign() * pull[gap.abs()]
            return model.K / 2 * k[:, None] * r[gap.abs()] * drive

        diffusion = torch.diag(-0.5 * k.double() ** 2)
        same, mirror = column(k), column(-k)
        return _real_eigenvalues(diffusion + same + mirror), _real_eigenvalues(diffusion + same - mirror)


def _real_eigenvalues(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.eigvals(matrix)
    return values.real


def _distinct(r: Tensor) -> Tensor:
    """Rows without repetition, rounded to 1e-6."""
    return torch.unique((r * 1e6).round(), dim=0) / 1e6


def _upright(r: Tensor) -> Tensor:
    """The rotation by π/g, or none, that makes the first moment with odd k/g positive, g the period of the state."""
    kept = [k for k, value in enumerate(r.tolist(), 1) if abs(value) > SAME]
    g = math.gcd(*kept)
    signs = torch.tensor([(-1.0) ** (k // g) if g and k % g == 0 else 1.0 for k in range(1, len(r) + 1)])
    leading = next((r[k - 1].item() for k in kept if (k // g) % 2), 1.0)
    return (r if leading > 0 else r * signs) + 0.0
