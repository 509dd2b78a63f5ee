"""Entropic transport between Gaussians: its value, and the prox of the Sinkhorn divergence by Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..measures.spd import Spectrum, symmetrise


def entropic_cost(
    A: Float[Tensor, "*#batch d d"], B: Float[Tensor, "*#batch d d"], reg: float
) -> Float[Tensor, "*out"]:
    """min over plans between N(0, A) and N(0, B) of E|x − y|² + reg·KL(π | N(0, A) ⊗ N(0, B)).

    Janati, Muzellec, Peyré, Cuturi (2020), Theorem 1, with 2σ² = reg.
    """
    return _trace(A) + _trace(B) + coupling_gain(_coupled(A, B), reg)


def sinkhorn_divergence(
    A: Float[Tensor, "*#batch d d"], B: Float[Tensor, "*#batch d d"], reg: float
) -> Float[Tensor, "*out"]:
    """OT(A, B) − ½OT(A, A) − ½OT(B, B) with OT = entropic_cost."""
    own = [coupling_gain(torch.linalg.eigvalsh(S).square(), reg) for S in (A, B)]
    return coupling_gain(_coupled(A, B), reg) - 0.5 * (own[0] + own[1])


def coupling_gain(s2: Float[Tensor, "*batch d"], reg: float) -> Float[Tensor, "*batch"]:
    """What the best plan saves on independence, from the eigenvalues s² of A^½BA^½: Σ −δ + (reg/2) log(1 + δ/reg),
    with δ = √(4s² + reg²/4) − reg/2."""
    delta = 4 * s2 / ((4 * s2 + reg**2 / 4).sqrt() + reg / 2)
    return (0.5 * reg * torch.log1p(delta / reg) - delta).sum(-1)


def _coupled(A: Tensor, B: Tensor) -> Tensor:
    L = torch.linalg.cholesky(A)
    return torch.linalg.eigvalsh(symmetrise(L.mT @ B @ L)).clamp_min(0)


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)


@dataclass(frozen=True, eq=False)
class DebiasedProx:
    """argmin over S ≻ 0 of tau·tr(P S) − gamma·log det S + sinkhorn_divergence(S, cov, reg), strictly convex in S.

    cov, P: (n, d, d), one flat batch dimension. Newton's method with a line search; each Newton system is solved by
    conjugate gradients in the frame N with NᵀSN diagonal and NNᵀ = cov, where all but one term is diagonal (and all
    are, when the data commute). Gradients come from the implicit function theorem.
    """

    cov: Tensor
    P: Tensor
    tau: float
    gamma: float
    reg: float

    def solve(self, start: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        """The minimiser S (n, d, d), and for each item Newton's iterations and its last relative step."""
        bare = DebiasedProx(self.cov.detach(), self.P.detach(), self.tau, self.gamma, self.reg)
        S = start.detach().clone()
        iterations = torch.zeros(len(S), dtype=torch.int64, device=S.device)
        residual = S.new_full((len(S),), torch.inf)
        with torch.no_grad():
            for _ in range(max_iterations):
                active = (residual > tolerance).nonzero()[:, 0]  # finished items freeze
                if not len(active):
                    break
                S[active], residual[active] = bare._item(active)._newton(S[active])
                iterations[active] += 1
        if not (self.cov.requires_grad or self.P.requires_grad):
            return S, iterations, residual
        force = self.tau * self.P - self._pull(S)  # the part of ∇J that depends on cov and P
        return _Implicit.apply(force, S, bare), iterations, residual

    def _item(self, index: Tensor) -> DebiasedProx:
        return DebiasedProx(self.cov[index], self.P[index], self.tau, self.gamma, self.reg)

    def objective(self, S: Tensor) -> Tensor:
        """tau·tr(PS) − gamma·log det S + the divergence up to a constant; infinite outside S ≻ 0, (n,)."""
        chol, info = torch.linalg.cholesky_ex(S)
        logdet = 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        own = coupling_gain(torch.linalg.eigvalsh(S).square(), self.reg)
        value = self.tau * (self.P * S).sum((-2, -1)) + coupling_gain(_coupled(self.cov, S), self.reg) - 0.5 * own
        return torch.where(info == 0, value - self.gamma * logdet if self.gamma else value, torch.inf)

    def _pull(self, S: Tensor) -> Tensor:
        """I − ∇OT(·, cov) at S, namely L φ(LᵀSL) Lᵀ with cov = LLᵀ; differentiable in cov."""
        L = torch.linalg.cholesky(self.cov)
        inner = Spectrum.of(symmetrise(L.mT @ S @ L))
        return L @ inner.map(lambda x: _pull(x, self.reg), lambda x, y: _pull_divided(x, y, self.reg)) @ L.mT

    def _newton(self, S: Tensor) -> tuple[Tensor, Tensor]:
        """One step with backtracking, and its length relative to S."""
        frame = self.frame(S)
        E = conjugate_gradients(frame.hessian, -frame.gradient, frame.jacobi, 1e-10)
        length = (E.square() * frame.inverse_products).sum((-2, -1)).sqrt()
        slope = (frame.gradient * E).sum((-2, -1))
        direction = symmetrise(frame.inverse.mT @ E @ frame.inverse)
        return self._backtrack(S, direction, slope, length), length

    def _backtrack(self, S: Tensor, direction: Tensor, slope: Tensor, length: Tensor) -> Tensor:
        before, alpha = self.objective(S), torch.ones_like(length)
        near = max(1e-4, 10 * torch.finfo(S.dtype).eps ** 0.5)
        for _ in range(60):
            value = self.objective(S + alpha[:, None, None] * direction)
            # so near the minimum, a decrease drowns in rounding and the full step is safe
            good = (value <= before + 1e-4 * alpha * slope) | (length < near)
            if good.all():
                break
            alpha = torch.where(good, alpha, alpha / 2)
        return S + alpha[:, None, None] * direction

    def frame(self, S: Tensor) -> _Frame:
        """Gradient and Hessian of the objective at S, in the coordinates E ↦ NᵀEN."""
        L, reg = torch.linalg.cholesky(self.cov), self.reg
        a, W = torch.linalg.eigh(S)
        x, V = torch.linalg.eigh(symmetrise(L.mT @ S @ L))
        inverse = V.mT @ _inverse(L)
        Z = inverse @ W
        own, own_divided = _own(a, reg), _own_divided(a[:, :, None], a[:, None, :], reg)
        products = 1 / (x[:, :, None] * x[:, None, :])
        curvature = self.gamma * products - _pull_divided(x[:, :, None], x[:, None, :], reg)
        gradient = self.tau * inverse @ self.P @ inverse.mT + (Z * own[:, None, :]) @ Z.mT
        gradient = gradient - torch.diag_embed(_pull(x, reg) + self.gamma / x)
        return _Frame(inverse, symmetrise(gradient), curvature, own_divided, Z, products)


@dataclass(frozen=True, eq=False)
class _Frame:
    """The objective near S in coordinates Ẽ = NᵀEN: gradient, and Hessian Ẽ ↦ K∘Ẽ + Z(Γ∘ZᵀẼZ)Zᵀ."""

    inverse: Tensor  # N⁻¹
    gradient: Tensor
    curvature: Tensor  # K > 0
    own: Tensor  # Γ > 0
    Z: Tensor
    inverse_products: Tensor  # 1/(x_i x_j), the metric of S in these coordinates

    def hessian(self, E: Tensor) -> Tensor:
        return self.curvature * E + self.Z @ (self.own * (self.Z.mT @ E @ self.Z)) @ self.Z.mT

    @property
    def jacobi(self) -> Tensor:
        """Diagonal of the Hessian."""
        Z2 = self.Z.square()
        return self.curvature + Z2 @ self.own @ Z2.mT


class _Implicit(torch.autograd.Function):
    """S, as a function of the force: dS = −H⁻¹ d(force) at the minimiser, H the Hessian."""

    @staticmethod
    def forward(ctx: Any, force: Tensor, S: Tensor, problem: DebiasedProx) -> Tensor:
        ctx.problem = problem
        ctx.save_for_backward(S)
        return S.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        frame = ctx.problem.frame(ctx.saved_tensors[0])
        inner = symmetrise(frame.inverse @ symmetrise(grad) @ frame.inverse.mT)
        E = conjugate_gradients(frame.hessian, -inner, frame.jacobi, 1e-13)
        return symmetrise(frame.inverse.mT @ E @ frame.inverse), None, None


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor, tolerance: float, max_iterations: int = 500
) -> Tensor:
    """x with apply(x) = b for a symmetric positive operator on (n, d, d), preconditioned by its diagonal; finished
    items freeze."""
    x, r = torch.zeros_like(b), b
    z = r / diagonal
    p, rz = z, (r * z).sum((-2, -1), keepdim=True)
    floor = (max(tolerance, 4 * torch.finfo(b.dtype).eps)) ** 2 * rz
    for _ in range(max_iterations):
        active = rz > floor
        if not active.any():
            break
        Ap = apply(p)
        alpha = torch.where(active, rz / (p * Ap).sum((-2, -1), keepdim=True), 0.0)
        x, r = x + alpha * p, r - alpha * Ap
        z = r / diagonal
        new = (r * z).sum((-2, -1), keepdim=True)
        p = torch.where(active, z + new / torch.where(active, rz, torch.ones_like(rz)) * p, p)
        rz = torch.where(active, new, rz)
    return x


def _inverse(L: Tensor) -> Tensor:
    eye = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    return torch.linalg.solve_triangular(L, eye, upper=False)


# With D(x) = √(4x + e²), e = reg/2: the gradient of the coupling with cov is φ(x) = 2/(D + e) in its frame, and that of
# the self-coupling of S is G(a) = 2a/(D(a²) + e). Their divided differences have no cancellation.


def _width(x: Tensor, reg: float) -> Tensor:
    return (4 * x + reg**2 / 4).sqrt()


def _pull(x: Tensor, reg: float) -> Tensor:
    return 2 / (_width(x, reg) + reg / 2)


def _pull_divided(x: Tensor, y: Tensor, reg: float) -> Tensor:
    Dx, Dy, e = _width(x, reg), _width(y, reg), reg / 2
    return -8 / ((Dx + Dy) * (Dx + e) * (Dy + e))


def _own(a: Tensor, reg: float) -> Tensor:
    return 2 * a / (_width(a.square(), reg) + reg / 2)


def _own_divided(a: Tensor, b: Tensor, reg: float) -> Tensor:
    Da, Db, e = _width(a.square(), reg), _width(b.square(), reg), reg / 2
    return 2 * e * (1 + e * (a + b) / (a * Db + b * Da)) / ((Da + e) * (Db + e))
