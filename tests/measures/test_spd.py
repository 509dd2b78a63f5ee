"""Functions of SPD matrices: values, and gradients that are finite and right at repeated eigenvalues."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from otprox.measures import bures2, optimal_map, spectral, sqrtm
from otprox.measures.spd import Spectrum, divided_difference, root, whiten

seeds = st.integers(0, 2**31)
dims = st.integers(1, 6)


def spd(seed: int, dim: int, *batch: int, floor: float = 0.05) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, dim, dim, generator=generator)
    return x @ x.mT / dim + floor * torch.eye(dim)


def symmetric(A: Tensor) -> Tensor:
    """gradcheck perturbs single entries; functions of symmetric matrices see the symmetric part."""
    return (A + A.mT) / 2


REPEATED = {
    "identity": torch.eye(3),
    "double": torch.diag(torch.tensor([2.0, 2.0, 0.3])),
    "nearly double": torch.diag(torch.tensor([2.0, 2.0 + 1e-9, 0.3])),
    "distinct": torch.tensor([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]]),
}


@given(seeds, dims)
def test_sqrtm_squares_to_its_argument(seed: int, dim: int):
    A = spd(seed, dim, 2)
    torch.testing.assert_close(sqrtm(A) @ sqrtm(A), A, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("A", REPEATED.values(), ids=REPEATED)
def test_gradients_at_repeated_eigenvalues(A: Tensor):
    A = A.clone().requires_grad_()
    assert gradcheck(lambda A: sqrtm(symmetric(A)), A)
    assert gradcheck(lambda A: spectral(symmetric(A), torch.exp, torch.exp), A)
    assert gradcheck(lambda A: spectral(symmetric(A), torch.log, torch.reciprocal), A)


def test_gradient_of_the_root_at_the_identity_is_one_half():
    A = (4 * torch.eye(4)).requires_grad_()
    G = symmetric(torch.arange(16.0).reshape(4, 4))
    (sqrtm(A) * G).sum().backward()
    torch.testing.assert_close(A.grad, G / 4)  # Sylvester: 2X + X2 = G


@given(seeds, dims)
def test_spectral_agrees_with_the_exact_divided_difference(seed: int, dim: int):
    A, G = spd(seed, dim), symmetric(spd(seed + 1, dim))
    x, y = (A.clone().requires_grad_() for _ in range(2))
    (sqrtm(x) * G).sum().backward()
    (spectral(y, torch.sqrt, lambda v: 0.5 / v.sqrt()) * G).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9, 1e-6, 1e-5, 1e-4, 1e-2])
def test_the_divided_difference_is_right_at_every_gap(gap: float):
    x, y = torch.tensor(1.3), torch.tensor(1.3 + gap)
    exact = 1 / (x.sqrt() + y.sqrt())
    torch.testing.assert_close(
        divided_difference(torch.sqrt, lambda v: 0.5 / v.sqrt())(x, y), exact, rtol=1e-10, atol=0
    )


def test_eigenvalues_are_differentiable_in_sums():
    A = torch.eye(3).requires_grad_()
    Spectrum.of(A).values.square().sum().backward()
    torch.testing.assert_close(A.grad, 2 * torch.eye(3))


def test_bures2_has_the_known_value(gaussians):
    torch.testing.assert_close(bures2(gaussians.S0, gaussians.Q).item(), 1.035573996897324, rtol=1e-14, atol=0)


@given(seeds, dims)
def test_bures2_is_the_formula_of_traces(seed: int, dim: int):
    A, B = spd(seed, dim, 3), spd(seed + 1, dim)
    half = sqrtm(A)
    cross = sqrtm(half @ B @ half)
    traces = [S.diagonal(dim1=-2, dim2=-1).sum(-1) for S in (A, B, cross)]
    torch.testing.assert_close(bures2(A, B), traces[0] + traces[1] - 2 * traces[2], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("step", [1e-3, 1e-6, 1e-9, 1e-12])
def test_bures2_keeps_its_digits_for_near_matrices(step: float):
    """W2²(A, (1 + h)²A) = h² tr A; the formula of traces loses all digits for h < 1e-7."""
    A = spd(3, 5)
    exact = step**2 * A.trace()
    actual = bures2(A, (1 + step) ** 2 * A)
    floor = 1e-15 * A.trace().sqrt() * exact.sqrt()  # rounding of (1 + h)²A itself
    assert (actual - exact).abs() <= 1e-12 * exact + 4 * floor
    assert actual >= 0


@given(seeds, dims)
def test_bures2_of_a_matrix_with_itself_is_rounding(seed: int, dim: int):
    A = spd(seed, dim)
    assert 0 <= bures2(A, A) <= 1e-27 * A.trace()


@pytest.mark.parametrize("A", REPEATED.values(), ids=REPEATED)
def test_gradients_of_bures2(A: Tensor):
    A = A.clone().requires_grad_()
    for B in (torch.eye(3), REPEATED["distinct"], 1.7 * A.detach()):
        B = B.clone().requires_grad_()
        assert gradcheck(lambda A, B: bures2(symmetric(A), symmetric(B)), (A, B))
        assert gradgradcheck(lambda A, B: bures2(symmetric(A), symmetric(B)), (A, B), atol=1e-4)


def test_the_gradient_of_bures2_vanishes_at_equality():
    A = spd(0, 4).requires_grad_()
    bures2(A, A.detach()).backward()
    assert A.grad.abs().max() < 1e-13


def test_bures2_of_singular_matrices():
    A, B = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 4.0]))
    torch.testing.assert_close(bures2(A, B), torch.tensor(5.0))
    torch.testing.assert_close(bures2(torch.stack([A, torch.eye(2)]), torch.eye(2)), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(root(A) @ root(A).mT, A)


@given(seeds, dims)
def test_the_optimal_map_is_spd_and_carries_a_to_b(seed: int, dim: int):
    A, B = spd(seed, dim), spd(seed + 1, dim)
    T = optimal_map(A, B)
    torch.testing.assert_close(T @ A @ T, B, rtol=1e-9, atol=1e-10)
    assert torch.linalg.eigvalsh(T)[0] > 0
    torch.testing.assert_close(optimal_map(B, A) @ T, torch.eye(dim), rtol=1e-9, atol=1e-9)
    gap = T - torch.eye(dim)
    torch.testing.assert_close((gap @ A @ gap).trace(), bures2(A, B), rtol=1e-8, atol=1e-10)


def test_the_optimal_map_is_differentiable_at_repeated_eigenvalues():
    A, B = torch.eye(3).requires_grad_(), (2 * torch.eye(3)).requires_grad_()
    assert gradcheck(lambda A, B: optimal_map(symmetric(A), symmetric(B)), (A, B))


def test_whitening_by_its_own_factor_is_the_identity():
    R = spd(1, 3, 2)
    torch.testing.assert_close(whiten(R, torch.linalg.cholesky(R)), torch.eye(3).expand(2, 3, 3))


def test_batches_equal_single_runs_and_float32_works():
    A, B = spd(5, 4, 3), spd(6, 4, 3)
    for f in (bures2, optimal_map):
        torch.testing.assert_close(
            f(A, B), torch.stack([f(a, b) for a, b in zip(A, B, strict=True)]), rtol=1e-13, atol=0
        )
        single = f(A.float(), B.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), f(A, B), rtol=1e-3, atol=1e-3)
