"""Random batches: unbiased, each pair symmetric, one sum over all when the batch is everybody."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox import Forward, Interaction, Particles, Torus
from otprox.kernels import RBF, Cosine, Energy, Median, RandomBatch
from otprox.pairwise import Slope, convolve, divergence_sum, gradient_sum, kernel_sum, stein_sum, trace_sum


def cloud(n: int = 7, d: int = 2, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    w = torch.rand(*batch, n, generator=g)
    return torch.randn(*batch, n, d, generator=g), w / w.sum(-1, keepdim=True)


def batches(W, size: int, seed: int = 1) -> RandomBatch:
    return RandomBatch(W, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "size"), [(4, 2), (5, 2), (5, 3), (5, 4)])
@pytest.mark.parametrize("f", [kernel_sum, gradient_sum, divergence_sum, trace_sum, stein_sum])
def test_the_mean_over_all_draws_is_the_sum_over_all_pairs(monkeypatch, f, n, size):
    """Over every order of the particles, whether or not the batches divide them."""
    x, w = cloud(n)
    arguments = {divergence_sum: (x, x, x), stein_sum: (x, -x, w)}.get(f, (x, x, w))
    orders = [torch.tensor(p) for p in permutations(range(n))]
    draws = iter(orders)
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: next(draws))
    mean = sum(f(batches(RBF(0.7), size), *arguments) for _ in orders) / len(orders)
    torch.testing.assert_close(mean, f(RBF(0.7), *arguments), rtol=1e-12, atol=1e-13)


PLAIN = [lambda z: z.square().sum(-1).sqrt(), lambda z: -z.norm(dim=-1).log()]


@pytest.mark.parametrize("W", [RBF(0.7), Energy(), *PLAIN])
@pytest.mark.parametrize("n", [8, 9, 11])
def test_nothing_is_gained_or_lost(W, n):
    """Σ w_i v_i = 0 for v = ∇W∗μ, in every draw, with any weights."""
    x, w = cloud(n)
    for seed in range(5):
        v = convolve(Slope(batches(W, 4, seed)), x, x, w)
        assert v.abs().max() > 0.01
        torch.testing.assert_close(w @ v, torch.zeros(2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [1, 5])
def test_one_batch_of_all_is_the_sum_over_all_pairs(n):
    x, w = cloud(n, batch=(2,))
    random = batches(RBF(0.7), max(n, 2))
    torch.testing.assert_close(kernel_sum(random, x, x, w), kernel_sum(RBF(0.7), x, x, w))
    torch.testing.assert_close(convolve(Slope(random), x, x, w), convolve(Slope(RBF(0.7)), x, x, w))


def test_elsewhere_all_particles_act():
    x, w = cloud()
    at = x[:3] + 0.1
    random = batches(RBF(0.7), 2)
    torch.testing.assert_close(kernel_sum(random, at, x, w), kernel_sum(RBF(0.7), at, x, w))
    torch.testing.assert_close(convolve(Slope(random), at, x, w), convolve(Slope(RBF(0.7)), at, x, w))


def test_a_draw_is_differentiable():
    x, w = cloud()

    def energy(x: Tensor, w: Tensor) -> Tensor:
        return w @ kernel_sum(batches(RBF(0.7), 3), x, x, w)

    assert torch.autograd.gradcheck(energy, (x.requires_grad_(), w.requires_grad_()))


def test_the_mean_is_kept_along_a_flow_on_a_torus():
    mu = Particles(cloud(40, 1)[0], domain=Torus(2 * math.pi))
    step = Forward(Interaction(batches(Cosine([-1.0]), 8)))
    moved = step(mu, 0.0, 0.1).mu
    shift = torch.remainder(moved.x - mu.x + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(shift.mean(), torch.zeros(()), rtol=0, atol=1e-14)
    assert shift.abs().max() > 1e-3


def test_steps_know_the_generators_of_kernels_so_that_runs_repeat(tmp_path):
    k = 2.0 * batches(RBF(0.7), 3) - RBF(2.0)
    mu, (generator,) = Particles(cloud()[0]), k.generators()
    target = ox.Gaussian([0.0, 0.0], torch.eye(2))
    for step in (
        Forward(Interaction(k)),
        Forward(ox.MMD(k, Particles(cloud()[0] + 1))),
        Forward(ox.KL(target), ox.Stein(k)),
    ):
        assert step.generators() == (generator,)
    step = Forward(Interaction(k))
    path = ox.flow(step, mu, [0.0, 0.1, 0.2])
    want = ox.record(path).final.x
    assert torch.equal(ox.record(path).final.x, want)
    generator.manual_seed(1)
    ox.record(ox.flow(step, mu, [0.0, 0.1]), checkpoint=tmp_path / "run")
    generator.manual_seed(7)
    assert torch.equal(ox.record(ox.flow(step, mu, [0.0, 0.1, 0.2]), checkpoint=tmp_path / "run").final.x, want)


def test_a_rule_for_the_width_is_fitted_to_all_particles():
    x, w = cloud()
    found = kernel_sum(batches(RBF(Median()), 3), x, x, w)
    torch.testing.assert_close(found, kernel_sum(batches(RBF(Median()).fit(x), 3), x, x, w))


def test_each_item_of_a_batch_keeps_its_width():
    """Two items in two batches: a width must not slip from the one axis to the other."""
    x, w = cloud(4, batch=(2,))
    x = x * torch.tensor([1.0, 5.0])[:, None, None]
    found = kernel_sum(batches(RBF(Median()), 2), x, x, w)
    one = [kernel_sum(batches(RBF(Median()).fit(p), 2), p, p, v) for p, v in zip(x, w, strict=True)]
    torch.testing.assert_close(found, torch.stack(one))


def test_what_is_refused():
    with pytest.raises(ValueError, match="batches of at least 2 particles, not 1"):
        batches(RBF(1.0), 1)
    with pytest.raises(ValueError, match="needs an explicit generator"):
        RandomBatch(RBF(1.0), 4, generator=None)
    x, w = cloud()
    with pytest.raises(TypeError, match="RandomBatch of a plain function has convolutions only"):
        kernel_sum(batches(lambda z: z[..., 0] ** 2, 3), x, x, w)
