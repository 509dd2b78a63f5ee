"""Potentials of data estimated from batches: unbiased, the same for all particles, exact to resume."""

import itertools

import pytest
import torch

import otprox as ox

DATA = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
X = ox.Particles(torch.randn(5, 2, generator=torch.Generator().manual_seed(4)))


def loss(x, index):
    return ((x[..., None, :] - DATA[index]) ** 4).sum((-2, -1))


def minibatch(size, seed=0):
    return ox.Minibatch(loss, rows=len(DATA), size=size, generator=torch.Generator().manual_seed(seed))


def test_value_and_gradient_are_those_of_the_full_sum():
    full, F = ox.Potential(lambda x: loss(x, torch.arange(6))), minibatch(2)
    state = F.generator.get_state()
    torch.testing.assert_close(F(X), full(X))
    torch.testing.assert_close(F.gradient(X), full.gradient(X))
    torch.testing.assert_close(F.first_variation(X), full.first_variation(X))
    assert torch.equal(F.generator.get_state(), state)  # looking draws nothing


def test_the_estimate_is_unbiased():
    """All batches of two rows are equally likely: their average is the full gradient, and many draws approach it."""
    batches = [3 * ox.Potential(lambda x, i=i: loss(x, torch.tensor(i))) for i in itertools.combinations(range(6), 2)]
    want = minibatch(2).gradient(X)
    torch.testing.assert_close(sum(F.gradient(X) for F in batches) / len(batches), want)
    F, known, seen = minibatch(2), torch.stack([batch.gradient(X) for batch in batches]), set()
    for _ in range(150):
        gap = (known - F.drawn().gradient(X)).abs().amax((-2, -1))
        assert gap.min() < 1e-12
        seen.add(int(gap.argmin()))
    assert len(seen) == len(batches)


def test_a_batch_of_all_rows_is_exact():
    torch.testing.assert_close(minibatch(6).drawn().gradient(X), minibatch(6).gradient(X))


@pytest.mark.parametrize("make", [ox.Forward, ox.Adagrad])
def test_a_resumed_run_is_bit_for_bit_the_same(make, tmp_path):
    def path(seed, steps=20):
        step = make(minibatch(2, seed) + 0.5 * ox.Entropy(), ox.Stein(ox.kernels.RBF(1.0)))
        return ox.flow(step, X, [1e-3 * k for k in range(steps + 1)])

    whole = ox.record(path(1))
    half = ox.record(path(1, 8), checkpoint=tmp_path / "run.npz")
    resumed = ox.record(path(1), checkpoint=tmp_path / "run.npz")
    assert half.steps == 8 and torch.equal(resumed.final.x, whole.final.x)
    assert not torch.equal(ox.record(path(2)).final.x, whole.final.x)


def test_a_varying_functional_says_what_it_draws_from():
    F = minibatch(2)
    step = ox.Forward(ox.Varying(lambda t: t * F + ox.Entropy(), generator=F.generator), ox.Stein(ox.kernels.RBF(1.0)))
    assert step.generators() == (F.generator,)
    path = ox.flow(step, X, [0.0, 1e-3, 2e-3])
    assert torch.equal(ox.record(path).final.x, ox.record(path).final.x)


def test_refusals():
    with pytest.raises(ValueError, match="between 1 and all 6 rows, not 7"):
        minibatch(7)
    with pytest.raises(TypeError, match="torch.Generator"):
        ox.Minibatch(loss, rows=6, size=2, generator=0)
