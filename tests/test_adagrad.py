"""Adagrad: its recursion, the scale of V, and exact resumption."""

import pytest
import torch

import otprox as ox

RBF = ox.kernels.RBF
V = lambda x: (x**4).sum(-1) / 4 + x[..., 0] * x[..., 1]  # noqa: E731
START = ox.Particles(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("decay", [0.9, 0.5, 1.0])
def test_the_recursion(decay):
    F, metric, tau, eps = ox.KL(V), ox.Stein(RBF(0.8)), 0.05, 1e-6
    run = ox.record(ox.flow(ox.Adagrad(F, metric, decay=decay), START, [tau * k for k in range(6)]))
    x, h = START.x, None
    for _ in range(5):
        v = metric.descent(F, ox.Particles(x)).field(x)
        h = v**2 if h is None else (h + v**2 if decay == 1 else decay * h + (1 - decay) * v**2)
        x = x + tau * v / (eps + h.sqrt())
    torch.testing.assert_close(run.final.x, x)


def test_steps_do_not_depend_on_the_scale_of_the_functional():
    ends = []
    for c in (1.0, 1e4):
        step = ox.Adagrad(c * ox.KL(V), ox.Stein(RBF(0.8)), eps=1e-14)
        ends.append(ox.record(ox.flow(step, START, [0.05 * k for k in range(10)])).final.x)
    torch.testing.assert_close(*ends, atol=1e-9, rtol=0)


def test_resuming_is_exact(tmp_path):
    step = lambda: ox.Adagrad(ox.KL(V), ox.Stein(RBF(0.8)))  # noqa: E731
    times = [0.05 * k for k in range(21)]
    whole = ox.record(ox.flow(step(), START, times))
    ox.record(ox.flow(step(), START, times[:9]), checkpoint=tmp_path / "run.npz")
    resumed = ox.record(ox.flow(step(), START, times), checkpoint=tmp_path / "run.npz")
    assert torch.equal(resumed.final.x, whole.final.x)


def test_batches_are_single_runs():
    x = torch.stack([START.x, START.x.flip(0) + 0.3])
    step, times = ox.Adagrad(ox.KL(V), ox.Stein(RBF(0.8))), [0.05 * k for k in range(5)]
    both = ox.record(ox.flow(step, ox.Particles(x), times), residual=lambda tick: tick.stats.residual)
    assert both.series["residual"].shape == (4, 2)
    for part, one in zip(x, both.final.x, strict=True):
        torch.testing.assert_close(ox.record(ox.flow(step, ox.Particles(part), times)).final.x, one)


def test_refusals():
    with pytest.raises(ValueError, match="decay"):
        ox.Adagrad(ox.KL(V), decay=1.5)
    with pytest.raises(ValueError, match="eps"):
        ox.Adagrad(ox.KL(V), eps=0.0)
    with pytest.raises(TypeError, match="Adaptive"):
        ox.Adagrad(ox.KL(V))(ox.Gaussian([0.0], [[1.0]]), 0.0, 0.1)
