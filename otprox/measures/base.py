"""What every measure can do, and the tangents along which measures move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]  # points (*batch, n, d) -> values (*batch, n) or vectors (*batch, n, d)


class StepTooLarge(ValueError):
    """The step size is above the limit of an explicit step's stability or an implicit step's convexity."""


class ConvergenceWarning(UserWarning):
    """A solver or a training stopped before its tolerance."""


class Tangent(ABC):
    """A direction in which a measure can move."""

    def __add__(self, other: Tangent) -> Tangents:
        return Tangents((*self._parts(), *other._parts()))

    def _parts(self) -> tuple[Tangent, ...]:
        return (self,)


@dataclass(frozen=True, eq=False)
class Velocity(Tangent):
    """Transport, ∂t μ = −div(μ v).

    `field` gives v at points. A metric that knows more says so, and each measure uses what it can: `potential` is φ at
    the measure's own nodes or cells when v = −Q∇φ with `mobility` Q (None: the identity), `affine` is (E v, E ∇v) under
    a Gaussian, `faces` the normal velocity on the faces of a grid, one array an axis, `jacobian` is (v, ∇v) at the
    measure's own nodes, (*batch, n, d) and (*batch, n, d, d), by which a carried density moves.
    """

    field: Field
    potential: Callable[[], Tensor] | None = None
    diffusivity: Callable[[], Tensor] | None = None
    affine: Callable[[], tuple[Tensor, Tensor]] | None = None
    mobility: Tensor | None = None
    faces: Callable[[], tuple[Tensor, ...]] | None = None
    jacobian: Callable[[], tuple[Tensor, Tensor]] | None = None

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """v and ∇v at the measure's own nodes x."""
        return self.jacobian() if self.jacobian else (self.field(x), jacobian(self.field, x))


@dataclass(frozen=True, eq=False)
class Flux(Tangent):
    """Conservative change on a grid, ∂t ρ = −div J; `faces[a]` is J·e_a on the faces normal to axis a."""

    faces: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Growth(Tangent):
    """Reaction, ∂t μ = r μ, with the rate r at points."""

    rate: Field


@dataclass(frozen=True, eq=False)
class Tangents(Tangent):
    """A sum of tangents."""

    parts: tuple[Tangent, ...]

    def _parts(self) -> tuple[Tangent, ...]:
        return self.parts


class Measure(ABC):
    """A probability measure in one representation; immutable. Subclasses are frozen dataclasses and final.

    Batches lead: a batch of measures has `batch` as leading shape in every tensor.
    """

    mean: Tensor
    """∫ x dμ, (*batch, d)."""
    cov: Tensor
    """Covariance, (*batch, d, d)."""

    @property
    @abstractmethod
    def batch(self) -> torch.Size:
        """Leading batch shape."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimension d of the space."""

    @property
    @abstractmethod
    def anchor(self) -> Tensor:
        """A tensor of the measure: what is made for it takes this dtype and device."""

    @property
    @abstractmethod
    def points(self) -> Tensor:
        """The measure's own nodes or cells, (*batch, n, d), or (n, d) when the batch shares them."""

    @property
    def weights(self) -> Tensor:
        """Weights of the nodes or cells `points`, so that ∫ f dμ = Σ w f: (*batch, n), or (n,) when shared."""
        raise TypeError(f"{type(self).__name__} has no weighted nodes")

    @property
    def mass(self) -> Tensor:
        """Total mass, (*batch,)."""
        return self.anchor.new_ones(self.batch)

    @abstractmethod
    def expect(self, f: Field) -> Tensor:
        """∫ f dμ for f: (*batch, n, d) -> (*batch, n) or (*batch, n, k); result (*batch,) or (*batch, k)."""

    @abstractmethod
    def push(self, T: Callable[[Tensor], Any]) -> Self:
        """T#μ. T maps points to points, or to (points, log|det ∇T|), which carries a known density along."""

    @abstractmethod
    def move(self, tangent: Tangent, tau: float) -> Self:
        """μ after time tau along a tangent (one explicit step)."""

    @abstractmethod
    def diffuse(self, cov: Tensor, generator: torch.Generator | None = None) -> Self:
        """μ convolved with N(0, cov), cov of shape (d, d) or (*batch, d, d)."""

    @abstractmethod
    def to_particles(self, n: int, generator: torch.Generator) -> Measure:
        """n independent samples, as Particles."""

    @abstractmethod
    def to_density(self, grid: Any) -> Measure:
        """Averages over the cells of a Grid, as a Density; refused when it misses more than 1e-5 of the mass."""

    @abstractmethod
    def convolve(self, W: Field, x: Tensor | None = None) -> Tensor:
        """(W∗μ)(x) = ∫ W(x − y) dμ(y) at points x, or at μ's own nodes; W takes displacements (…, d) -> (…)."""

    def interact(self, W: Field) -> Tensor:
        """∬ W(x − y) dμ(x) dμ(y), (*batch,)."""
        return self.expect(lambda x: self.convolve(W, x))

    def log_prob(self, x: Tensor | None = None) -> Tensor:
        """log of the density at points x, or at μ's own nodes or cells."""
        raise TypeError(self._no_density("log-density"))

    def score(self, x: Tensor | None = None) -> Tensor:
        """∇ log of the density at points x, or at μ's own nodes or cells."""
        raise TypeError(self._no_density("score"))

    def identity(self) -> Any:
        """The identity matrix of the measure's space, in its dtype and on its device."""
        return torch.eye(self.dim, dtype=self.anchor.dtype, device=self.anchor.device)

    def expect_log(self, u: Field) -> Tensor:
        """∫ u(log ρ) dμ, the form of every internal energy."""
        raise TypeError(self._no_density("density"))

    def entropy(self) -> Tensor:
        """∫ log ρ dμ."""
        return self.expect_log(lambda log_rho: log_rho)

    def _no_density(self, what: str) -> str:
        return (
            f"{type(self).__name__} has no {what}. What would work: Particles(x, log_density=...) moved by maps with a "
            "known Jacobian, Blob(width) in place of Entropy, Heat() in place of Backward(Entropy()), "
            "solver=solvers.GaussianMap(), or another representation (Gaussian, Quantiles in 1-D, Density on a Grid)"
        )

    def state(self) -> dict[str, Tensor]:
        """The tensors that make the measure, by field name."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in own.items() if isinstance(value, Tensor)}

    def with_state(self, **tensors: Tensor | None) -> Self:
        """The same representation with other tensors. Not validated again: what enters was checked at construction."""
        new = object.__new__(type(self))
        for f in fields(self):  # type: ignore[arg-type]
            object.__setattr__(new, f.name, tensors.get(f.name, getattr(self, f.name)))
        for name in tensors.keys() - {f.name for f in fields(self)}:  # type: ignore[arg-type]
            raise TypeError(f"{type(self).__name__} has no field {name!r}")
        return new


def jacobian(v: Field, x: Tensor) -> Tensor:
    """∇v at points x (*batch, n, d), for a v that acts on each point alone: (*batch, n, d, d), its rows the ∇v_i.

    By d backward passes; differentiable again when x requires grad.
    """
    with torch.enable_grad():
        y = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        out = v(y)
        return torch.stack([_row(out[..., i].sum(), y, x.requires_grad) for i in range(x.shape[-1])], -2)


def _row(value: Tensor, y: Tensor, create_graph: bool) -> Tensor:
    """∇value at y; 0 where value does not depend on y."""
    if not value.requires_grad:
        return torch.zeros_like(y)
    (g,) = torch.autograd.grad(value, y, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(y) if g is None else g


def representation(name: str) -> Any:
    """The class of measures of that name, for conversions between two files that would import each other."""
    return next(cls for cls in Measure.__subclasses__() if cls.__name__ == name)


def as_float(value: Any, name: str, like: Tensor | None = None) -> Tensor:
    """A finite floating tensor from a tensor, array, list or number; dtype and device of `like` if it has none."""
    if isinstance(value, Tensor):
        tensor = value if value.is_floating_point() else value.to(torch.get_default_dtype())
    else:
        tensor = torch.as_tensor(value)
        if like is not None:
            tensor = tensor.to(like)
        elif not tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name} must be finite; {bad} of its {tensor.numel()} entries are NaN or infinite")
    if like is not None:
        check_alike(tensor, name, like)
    return tensor


def check_alike(tensor: Tensor, name: str, like: Tensor) -> None:
    """Refuse mixed dtypes and devices."""
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise TypeError(
            f"{name} is {tensor.dtype} on {tensor.device}, but the measure is {like.dtype} on {like.device}; "
            f"convert it with .to({like.dtype}, device={str(like.device)!r})"
        )


def common_batch(name: str, batch: torch.Size, other: str, other_batch: torch.Size) -> torch.Size:
    """The shape to which two batch shapes broadcast."""
    try:
        return torch.broadcast_shapes(batch, other_batch)
    except RuntimeError:
        raise ValueError(
            f"{name} has batch shape {tuple(batch)} and {other} has {tuple(other_batch)}; they must broadcast"
        ) from None


def check_noise(cov: Tensor, mu: Measure) -> None:
    """Refuse a covariance of noise that does not fit μ: other shape, dtype or device, or a negative variance."""
    batch = common_batch("the covariance of the noise", cov.shape[:-2], "the measure", mu.batch)
    if cov.shape[-2:] != (mu.dim, mu.dim) or batch != mu.batch:
        raise ValueError(
            f"the covariance of the noise has shape {tuple(cov.shape)}, but the measure has batch shape "
            f"{tuple(mu.batch)} and lives in dimension {mu.dim}"
        )
    check_alike(cov, "the covariance of the noise", mu.anchor)
    variance = cov.diagonal(dim1=-2, dim2=-1).min().item()
    if variance < 0:
        raise ValueError(f"noise must have a positive semi-definite covariance; this one has a variance {variance:.6g}")


def check_weights(w: Tensor, name: str, tolerance: float = 1e-5) -> Tensor:
    """Weights (*batch, n), refused when negative or when their sum is off 1 beyond `tolerance`, else normalised."""
    if (w < 0).any():
        raise ValueError(f"{name} must be non-negative; the smallest is {w.min().item():.6g}")
    total = w.sum(-1, keepdim=True)
    worst = total.flatten()[(total - 1).abs().argmax()].item()
    if abs(worst - 1) > tolerance:
        raise ValueError(f"{name} must sum to 1, not {worst:.8g}; divide them by their sum")
    return w / total


def check_spd(matrix: Tensor, name: str) -> Tensor:
    """A symmetric positive definite (*batch, d, d), symmetrised; otherwise an error with the offending number."""
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{name} must have shape (*batch, d, d), not {tuple(matrix.shape)}")
    matrix = check_symmetric(matrix, name)
    if torch.linalg.cholesky_ex(matrix).info.any():
        smallest = torch.linalg.eigvalsh(matrix)[..., 0]
        item = int(smallest.flatten().argmin())
        where = f" in batch item {item}" if smallest.ndim else ""
        raise ValueError(
            f"{name} must be symmetric positive definite; smallest eigenvalue is {smallest.min().item():.3g}{where}"
        )
    return matrix


def check_symmetric(matrix: Tensor, name: str) -> Tensor:
    """(matrix + matrixᵀ)/2, refused when the asymmetry exceeds 1e-8 (float32: 1e-4) of the largest entry."""
    tolerance = 1e-8 if matrix.dtype == torch.float64 else 1e-4
    gap = (matrix - matrix.mT).abs().amax().item() if matrix.numel() else 0.0
    if gap > tolerance * matrix.abs().amax().item():
        raise ValueError(f"{name} must be symmetric; largest |A − Aᵀ| is {gap:.3g}. Pass (A + A.T) / 2")
    return (matrix + matrix.mT) / 2
