"""Figures draw the numbers that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import otprox as ox
from otprox import plot, verify

WIDE = ox.Gaussian([1.0], [[4.0]])


@pytest.mark.parametrize(
    "mu",
    [
        WIDE,
        WIDE.to_density(ox.Grid(-12.0, 14.0, 200)),
        ox.Quantiles.of(WIDE, 2000),
        ox.Particles(ox.Quantiles.of(WIDE, 2000).x),
    ],
    ids=lambda mu: type(mu).__name__,
)
def test_lines_have_the_mass_and_mean_of_the_measure(mu):
    _, ax = plt.subplots()
    assert plot.density(mu, ax, label="mu") is ax
    x, y = (np.asarray(values) for values in ax.lines[0].get_data())
    assert np.trapezoid(y, x) == pytest.approx(1, abs=0.03)
    assert np.trapezoid(x * y, x) == pytest.approx(1, abs=0.05)
    plt.close()


def test_the_plane():
    mu = ox.Gaussian([0.0, 1.0], [[1.0, 0.3], [0.3, 0.5]])
    for shown in (mu, mu.to_density(ox.Grid((-6.0, -5.0), (6.0, 7.0), (30, 40))), ox.Particles(torch.randn(20, 2))):
        _, ax = plt.subplots()
        plot.density(shown, ax)
        assert len(ax.lines) + len(ax.images) + len(ax.collections) > 0
        plt.close()
    with pytest.raises(ValueError, match="dimension 1 or 2"):
        plot.density(ox.Particles(torch.zeros(3, 3)))


def test_ladders():
    verdicts = [verify.judge(case) for case in verify.catalogue() if case.name in ("order: JKO", "bias: JKO")]
    _, ax = plt.subplots()
    plot.ladder(verdicts, ax)
    assert len(ax.lines) == 2 and "order 0.99" in ax.get_legend().get_texts()[0].get_text()
    plt.close()
