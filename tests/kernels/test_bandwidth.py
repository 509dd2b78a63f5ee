"""Rules for widths: medians against all distances, invariances, what is cached, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox.kernels import RBF, Bilinear, Fixed, InverseMultiquadric, Laplace, Median, Rescaled, Weighted
from otprox.pairwise import gradient_sum, kernel_sum, stein_sum


def cloud(n: int = 40, d: int = 2, seed: int = 0, batch: tuple[int, ...] = ()) -> Tensor:
    return torch.randn(*batch, n, d, generator=torch.Generator().manual_seed(seed))


@given(n=st.integers(2, 40), d=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_the_median_is_over_all_pairs_and_balances(n, d, seed):
    x = cloud(n, d, seed)
    distances = sorted((x[i] - x[j]).norm().item() for i in range(n) for j in range(i))
    median = distances[(len(distances) - 1) // 2]
    h = RBF(Median()).fit(x).width
    assert h == pytest.approx(median / math.sqrt(2 * math.log(n + 1)))
    assert (n + 1) * math.exp(-(median**2) / (2 * h**2)) == pytest.approx(1.0)
    assert Laplace(Median(factor=0.5)).fit(x).width == pytest.approx(median / 2)


@given(c=st.floats(0.01, 100), shift=st.floats(-100, 100), seed=st.integers(0, 2**31))
def test_a_width_scales_with_the_particles(c, shift, seed):
    x = cloud(seed=seed)
    assert RBF(Median()).fit(c * x + shift).width == pytest.approx(c * RBF(Median()).fit(x).width, rel=1e-6)


def test_a_subsample_is_every_kth_particle():
    x = cloud(1001)
    found = Median(subsample=100, factor=1.0).width(x)
    assert found == Median(factor=1.0).width(x[::11])
    full = Median(subsample=2000, factor=1.0).width(x)
    assert found.item() == pytest.approx(full.item(), rel=0.1)


def test_the_choice_is_explained():
    x = cloud(1001)
    text = Median(subsample=100).explain(x)
    assert "of 4095 pairs among every 11th of 1001 particles, over √(2·log 1002)" in text
    assert text.startswith(f"width {RBF(Median(subsample=100)).fit(x).width:.4g}: median distance ")
    assert Median(factor=2.0).explain(x[:3]).endswith("of 3 pairs, times 2")
    assert Fixed(0.3).explain(x) == "width 0.3, as given"


def test_a_median_is_found_once_for_a_tensor_and_again_when_it_changes(monkeypatch):
    x, calls = cloud(), []
    inner = Median._median
    monkeypatch.setattr(Median, "_median", lambda self, x: calls.append(1) or inner(self, x))
    widths = [RBF(Median()).fit(x).width for _ in range(3)] + [Laplace(Median()).fit(x).width]
    assert len(set(widths)) == len(calls) == 1
    x.mul_(2.0)
    assert RBF(Median()).fit(x).width == pytest.approx(2 * widths[0])
    assert len(calls) == 2


def test_sums_fit_a_kernel_to_their_sources():
    x, y, b = cloud(7, seed=1), cloud(), cloud(40, 1)[:, 0]
    rule, fitted = RBF(Median()), RBF(Median()).fit(y)
    torch.testing.assert_close(kernel_sum(rule, x, y, b), kernel_sum(fitted, x, y, b))
    torch.testing.assert_close(gradient_sum(rule, x, y, b), gradient_sum(fitted, x, y, b))
    torch.testing.assert_close(stein_sum(rule, y, -y), stein_sum(fitted, y, -y))
    mixed = 0.5 * RBF(Median()) + Bilinear()
    torch.testing.assert_close(mixed.fit(y)(x, y), 0.5 * fitted(x, y) + Bilinear()(x, y))
    weighted = Weighted(lambda x: x.square().sum(-1), lambda x: x.square().sum(-1), rule)
    torch.testing.assert_close(stein_sum(weighted, y, -y), stein_sum(weighted.fit(y), y, -y))


def test_each_batch_item_has_its_own_width():
    x = cloud(batch=(3,)) * torch.tensor([0.5, 1.0, 4.0])[:, None, None]
    k = InverseMultiquadric(Median())
    assert isinstance(k.fit(x), Rescaled)
    found = stein_sum(k, x, -x)
    torch.testing.assert_close(found, torch.stack([stein_sum(k, item, -item) for item in x]))


def test_fixed_is_the_number():
    assert RBF(Fixed(2.0)) == RBF(2.0)
    assert torch.equal(Fixed(2.0).width(cloud(batch=(3,))), torch.full((3,), 2.0))


def test_no_gradient_goes_through_a_width():
    x = cloud(10).requires_grad_()
    (found,) = torch.autograd.grad(kernel_sum(RBF(Median()), x, x, torch.ones(10)).sum(), x)
    k = RBF(Median()).fit(x)
    (expected,) = torch.autograd.grad(kernel_sum(k, x, x, torch.ones(10)).sum(), x)
    torch.testing.assert_close(found, expected)


def test_what_is_refused():
    with pytest.raises(ValueError, match="is 0, since all particles are equal; give the kernel a number"):
        stein_sum(RBF(Median()), torch.ones(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="median distance is 0, since more than half of the pairs"):
        RBF(Median()).fit(torch.cat([torch.zeros(20, 1), torch.ones(2, 1)]))
    with pytest.raises(ValueError, match="median distance is NaN: a particle is not finite"):
        RBF(Median()).fit(torch.full((3, 1), math.nan))
    with pytest.raises(ValueError, match="at least 2 particles"):
        RBF(Median()).fit(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="subsample of at least 2 particles, not 1"):
        Median(subsample=1)
    with pytest.raises(ValueError, match="Median needs a factor > 0, not 0"):
        Median(factor=0)
    with pytest.raises(ValueError, match="Fixed needs a width > 0, not 0"):
        Fixed(0.0)
    with pytest.raises(TypeError, match=r"RBF\(width=Median.* has no width until it is fitted: k.fit\(x\)"):
        RBF(Median())(cloud(), cloud())
    overflowing = Weighted(lambda x: 1000 * x.square().sum(-1), lambda x: 0 * x[..., 0], RBF(1.0))
    with pytest.raises(ValueError, match=r"weight exp\(V − V0/2\) of the kernel is not finite: V − V0/2 reaches 4000"):
        stein_sum(overflowing, torch.full((3, 1), 2.0), torch.zeros(3, 1))


@pytest.mark.parametrize("width", ["median", None, Median, [1.0, 2.0], torch.ones(2)], ids=str)
def test_a_width_that_is_no_number_is_refused(width):
    with pytest.raises(TypeError, match=r"RBF needs a width > 0: one number, not .*; a rule is Median\(\)"):
        RBF(width)
