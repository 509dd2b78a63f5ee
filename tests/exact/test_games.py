"""The linear-quadratic game: its differential equations, its cost by quadrature, printed values, the implicit step."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from otprox import Gaussian, Quadratic
from otprox.exact import gaussian
from otprox.exact.games import LinearQuadraticGame

GAME = LinearQuadraticGame(mean=1.0, variance=0.5, goal=-1.0, pull=2.0, horizon=1.0, cohesion=1.5, viscosity=0.2)
GAMES = [
    GAME,
    dataclasses.replace(GAME, horizon=3.0, cohesion=0.4),
    dataclasses.replace(GAME, pull=0.0),
    dataclasses.replace(GAME, cohesion=0.0),
    dataclasses.replace(GAME, viscosity=0.0, variance=2.0, goal=5.0),
]


@pytest.mark.parametrize("game", GAMES)
def test_riccati_and_the_variance_solve_their_equations(game: LinearQuadraticGame):
    assert game.gain(game.horizon) == pytest.approx(game.pull, abs=1e-12)
    assert game.variance_at(0.0) == pytest.approx(game.variance)
    h = 1e-4
    for share in (0.1, 0.5, 0.9):
        t = share * game.horizon
        P, variance = game.gain(t), game.variance_at(t)
        assert (game.gain(t + h) - game.gain(t - h)) / (2 * h) == pytest.approx(P**2 - game.cohesion, abs=1e-6)
        slope = (game.variance_at(t + h) - game.variance_at(t - h)) / (2 * h)
        assert slope == pytest.approx(2 * game.viscosity - 2 * P * variance, abs=1e-6)


@pytest.mark.parametrize("game", GAMES)
def test_the_value_is_the_cost_of_the_equilibrium_by_quadrature(game: LinearQuadraticGame):
    n = 4000
    speed = (game.mean_at(game.horizon) - game.mean) / game.horizon
    times = [(k + 0.5) / n * game.horizon for k in range(n)]
    on_the_way = sum((game.gain(t) ** 2 + game.cohesion) * game.variance_at(t) + speed**2 for t in times)
    end = game.variance_at(game.horizon) + (game.mean_at(game.horizon) - game.goal) ** 2
    assert game.value == pytest.approx(on_the_way * game.horizon / n / 2 + game.pull / 2 * end, rel=1e-6)


def test_printed_values():
    assert GAME.gain(0.0) == pytest.approx(1.276664817883, abs=1e-11)
    assert GAME.gain(0.5) == pytest.approx(1.410928244672, abs=1e-11)
    assert GAME.mean_at(1.0) == pytest.approx(-1 / 3)
    found = [GAME.variance_at(t) for t in (0.25, 0.5, 1.0)]
    assert found == pytest.approx([0.334853714164, 0.241771803015, 0.141708240583], abs=1e-11)
    assert GAME.value == pytest.approx(1.948248389844, abs=1e-11)


def test_without_noise_and_cohesion_it_is_the_implicit_step_of_a_potential():
    game = LinearQuadraticGame(mean=1.2, variance=0.7, goal=-0.5, pull=3.0, horizon=0.4)
    V = Quadratic(torch.tensor([-0.5]), precision=torch.tensor([[3.0]]))
    step = gaussian.prox_potential(Gaussian(torch.tensor([1.2]), torch.tensor([[0.7]])), V, 0.4)
    assert game.mean_at(0.4) == pytest.approx(step.mean.item())
    assert game.variance_at(0.4) == pytest.approx(step.cov.item())


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="positive horizon"):
        dataclasses.replace(GAME, horizon=0.0)
    with pytest.raises(ValueError, match="viscosity ≥ 0"):
        dataclasses.replace(GAME, viscosity=-0.1)
