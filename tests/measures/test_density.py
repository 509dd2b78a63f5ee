"""Densities on grids: moments and integrals, push, move, diffuse, convolve, conversions, batches and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import (
    KL,
    Density,
    Entropy,
    Forward,
    Gaussian,
    Grid,
    Heat,
    Interaction,
    Particles,
    PorousMedium,
    Potential,
    Wasserstein,
    kernels,
    pairwise,
)
from otprox.measures import Flux, Growth, Velocity
from otprox.measures.distance import w2_squared


def bump(grid: Grid, *batch: int, seed: int = 0) -> Density:
    """A positive density without symmetry, vanishing at the walls."""
    g = torch.Generator().manual_seed(seed)
    x = (grid.points(torch.zeros(())) - torch.tensor(grid.lower)) / torch.tensor(grid.period)
    centre = 0.4 + 0.2 * torch.rand(*batch, 1, grid.dim, generator=g)
    width = 0.06 + 0.03 * torch.rand(*batch, 1, grid.dim, generator=g)
    z = (x - centre) / width
    values = torch.exp(-0.5 * z.square().sum(-1)) * (1 + 0.5 * torch.tanh(z.sum(-1)))
    values = values / values.sum(-1, keepdim=True) / grid.volume
    return Density(values.reshape(*batch, *grid.shape), grid)


def rough(grid: Grid, *batch: int, seed: int = 0) -> Density:
    """Independent random values, a third of them zero."""
    g = torch.Generator().manual_seed(seed)
    values = (torch.rand(*batch, grid.n, generator=g) - 1 / 3).clamp_min(0) + 1e-300
    values = values / values.sum(-1, keepdim=True) / grid.volume
    return Density(values.reshape(*batch, *grid.shape), grid)


def item(mu: Density, i: int) -> Density:
    return Density(mu.values[i], mu.grid)


def l1(mu: Density, nu: Density) -> float:
    return (mu.masses - nu.masses).abs().sum().item()


def order(errors: list[float]) -> float:
    """Observed order from errors at successive halvings, over all of them."""
    return math.log2(errors[0] / errors[-1]) / (len(errors) - 1)


def circle(n: int, k: int) -> tuple[Grid, float]:
    """A periodic grid of [−π, π], and the eigenvalue of its −Δ_h on the wave k."""
    grid = Grid(-math.pi, math.pi, n, periodic=True)
    return grid, (2 * math.sin(k * grid.spacing[0] / 2) / grid.spacing[0]) ** 2


GRIDS = [
    Grid(-1, 2, 40),
    Grid(-1, 2, 40, periodic=True),
    Grid((0, -1), (1, 3), (12, 20)),
    Grid((0, -1), (1, 3), (12, 20), periodic=(False, True)),
    Grid((0, 0, 0), (1, 2, 3), (6, 8, 7), periodic=(True, False, True)),
]


class TestGrid:
    def test_numbers_serve_every_axis(self):
        grid = Grid((-1, 0), 4, 10)
        assert (grid.dim, grid.shape, grid.lower, grid.upper) == (2, (10, 10), (-1.0, 0.0), (4.0, 4.0))
        assert grid.spacing == (0.5, 0.4)
        assert grid.volume == pytest.approx(0.2)
        assert grid == Grid((-1.0, 0.0), (4.0, 4.0), (10, 10), (False, False))
        assert hash(grid) == hash(Grid((-1, 0), 4, 10))

    def test_points_are_row_major_cell_centres(self):
        points = Grid((0, 0), (2, 3), (2, 3)).points(torch.zeros((), dtype=torch.float32))
        assert points.dtype == torch.float32
        assert points.tolist() == [[0.5, 0.5], [0.5, 1.5], [0.5, 2.5], [1.5, 0.5], [1.5, 1.5], [1.5, 2.5]]

    @pytest.mark.parametrize("periodic", [False, True])
    def test_faces_leave_out_the_walls(self, periodic: bool):
        x = Grid(0, 1, 4, periodic).faces(0, torch.zeros(()))
        assert x[:, 0].tolist() == [0.25, 0.5, 0.75] + [1.0] * periodic

    @pytest.mark.parametrize("grid", GRIDS)
    def test_cells_finds_each_point(self, grid: Grid):
        assert grid.cells(grid.points(torch.zeros(()))).tolist() == list(range(grid.n))

    def test_wraps_or_reflects_and_takes_the_shortest_way(self):
        grid = Grid((-1, -1), (1, 1), 4, (True, False))
        assert torch.allclose(grid.wrap(torch.tensor([[1.5, 1.5]])), torch.tensor([[-0.5, 0.5]]))
        z = grid.displacement(torch.tensor([0.9, 0.9]), torch.tensor([-0.9, -0.9]))
        assert torch.allclose(z, torch.tensor([-0.2, 1.8]))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((1, 0, 5), r"axis 0 has \[1.0, 0.0\]"),
            ((0, math.inf, 5), "finite"),
            ((0, 1, 0), "at least one cell.*got 0"),
            ((0, 1, 2.5), "whole number; got 2.5"),
            (((0, 0), (1, 1, 1), 5), "agree on the number of axes"),
            ((0, 1, (2, 2, 2, 2)), "1, 2 or 3 axes, not 4"),
        ],
    )
    def test_bad_input(self, arguments: tuple, words: str):
        with pytest.raises(ValueError, match=words):
            Grid(*arguments)


class TestConstruction:
    def test_divides_by_the_integral_when_it_is_nearly_one(self):
        mu = Density(torch.full((10,), 1 + 9e-6), Grid(0, 1, 10))
        assert mu.mass.item() == pytest.approx(1, abs=1e-15)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (torch.full((10,), 1.1), "not 1.1; divide by it"),
            (torch.ones(9), r"shape \(9,\); .*grid \(10,\)"),
            (torch.tensor(1.0), r"shape \(\)"),
            (torch.cat([torch.full((9,), 1.2), torch.tensor([-0.8])]), "smallest is -0.8"),
            (torch.full((10,), math.nan), "finite"),
        ],
    )
    def test_bad_input(self, values: Tensor, words: str):
        with pytest.raises(ValueError, match=words):
            Density(values, Grid(0, 1, 10))

    def test_needs_a_grid(self):
        with pytest.raises(TypeError, match="must be a Grid"):
            Density(torch.ones(10), (10,))

    def test_from_log_prob_normalises_and_averages_over_cells(self):
        grid = Grid(-6, 6, 30)
        mu = Density.from_log_prob(lambda x: 40 - 0.5 * (x[:, 0] - 0.3) ** 2, grid)
        exact = Gaussian([0.3], [[1.0]]).to_density(grid)
        assert torch.allclose(mu.values, exact.values, rtol=0, atol=2e-7)

    def test_dtype_follows_the_values(self):
        grid = Grid(-5, 5, 50)
        mu = Gaussian(torch.zeros(1, dtype=torch.float32), torch.eye(1, dtype=torch.float32)).to_density(grid)
        tangent = Wasserstein().descent(KL(lambda x: 0.5 * x.square().sum(-1)), mu)
        W = kernels.RBF(1.0)
        for nu in (
            mu.push(lambda x: x / 2),
            mu.diffuse(0.1 * torch.eye(1, dtype=torch.float32)),
            mu.move(tangent, 0.01),
        ):
            assert nu.values.dtype == torch.float32
            assert nu.mass.item() == pytest.approx(1, abs=1e-6)
            assert nu.convolve(W).dtype == nu.score().dtype == nu.mean.dtype == torch.float32


class TestIntegrals:
    @pytest.mark.parametrize("grid", GRIDS)
    def test_moments_are_expectations(self, grid: Grid):
        mu = rough(grid)
        mean = mu.expect(lambda x: x)
        assert torch.allclose(mu.mean, mean)
        centred = mu.expect(lambda x: ((x - mean)[..., :, None] * (x - mean)[..., None, :]).flatten(-2))
        assert torch.allclose(mu.cov.flatten(), centred)

    def test_entropy_with_empty_cells(self):
        mu = Density(torch.tensor([0.0, 2.0, 2.0, 0.0]), Grid(0, 1, 4))
        assert mu.entropy().item() == pytest.approx(math.log(2))
        assert PorousMedium(2)(mu).item() == pytest.approx(2)

    @pytest.mark.parametrize("dim", [1, 2])
    def test_entropy_score_and_log_prob_converge_at_second_order(self, dim: int):
        target = Gaussian(0.1 * torch.ones(dim), torch.eye(dim) * 0.8 + 0.1)
        x = torch.linspace(-1, 1.3, 211)[:, None].expand(-1, dim)
        errors = []
        for n in (40, 80):
            mu = target.to_density(Grid(-7, 7, (n,) * dim))
            errors.append(
                (
                    (mu.entropy() - target.entropy()).abs().item(),
                    (mu.score(x) - target.score(x)).abs().max().item(),
                    (mu.log_prob(x) - target.log_prob(x)).abs().max().item(),
                )
            )
        assert all(order(list(pair)) > 1.8 for pair in zip(*errors, strict=True))

    def test_score_of_a_quadratic_is_exact_up_to_the_walls(self):
        grid = Grid((-1, 0), (1, 3), (9, 6))
        x = grid.points(torch.zeros(()))
        log_rho = 0.3 * x[:, 0] ** 2 - 0.2 * x[:, 1] ** 2 + x[:, 1]
        values = torch.softmax(log_rho, 0).reshape(9, 6) / grid.volume
        expected = torch.stack([0.6 * x[:, 0], 1 - 0.4 * x[:, 1]], -1)
        assert torch.allclose(Density(values, grid).score(), expected, atol=1e-12)

    def test_log_prob_is_finite_on_the_grid_and_minus_infinity_beyond(self):
        mu = Density(torch.tensor([0.0, 2.0, 2.0, 0.0]), Grid(0, 1, 4))
        assert mu.log_prob()[1].item() == pytest.approx(math.log(2))
        assert -710 < mu.log_prob()[0] < -700
        assert mu.log_prob(torch.tensor([[0.5], [1.01]])).tolist() == [pytest.approx(math.log(2)), -math.inf]


class TestPush:
    @pytest.mark.parametrize("grid", GRIDS)
    @pytest.mark.parametrize("make", [bump, rough])
    def test_mass_and_positivity(self, grid: Grid, make):
        mu = make(grid)
        for T in (
            lambda x: x,
            lambda x: -0.3 * x + 0.2,
            lambda x: 3 * x + 1,
            lambda x: torch.sin(9 * x),
            lambda x: x.round(),
            lambda x: 0 * x + 0.37,
            lambda x: 1e6 + x,
        ):
            nu = mu.push(T)
            assert nu.mass.item() == pytest.approx(1, abs=2e-14)
            assert (nu.values >= 0).all()

    @pytest.mark.parametrize("make", [bump, rough])
    def test_identity_and_whole_cells_are_exact_on_the_line(self, make):
        grid = Grid(-1, 2, 40, periodic=True)
        mu = make(grid)
        assert torch.allclose(mu.push(lambda x: x).values, mu.values, atol=1e-13)
        moved = mu.push(lambda x: x + 3 * grid.spacing[0])
        assert torch.allclose(moved.values, mu.values.roll(3), atol=1e-12)
        assert torch.allclose(mu.push(lambda x: x + 7 * grid.period[0]).values, mu.values, atol=1e-11)

    @pytest.mark.parametrize(("a", "b"), [(1.0, 0.03), (2.0, -0.31), (0.35, 0.1), (-0.8, 0.7)])
    def test_uniform_laws_map_to_uniform_laws(self, a: float, b: float):
        grid, cut = Grid(-1, 2, 60), torch.tensor([0.3, 0.7])
        mu = Density(((grid.points(cut)[:, 0] > 0.3) & (grid.points(cut)[:, 0] < 0.7)) / 0.4, grid)
        low, high = (a * cut + b).sort().values
        edges = grid.edges(cut)[0]
        overlap = (torch.minimum(edges[1:], high) - torch.maximum(edges[:-1], low)).clamp_min(0)
        expected = overlap / (high - low) / grid.spacing[0]
        assert torch.allclose(mu.push(lambda x: (a * x + b, torch.zeros(()))).values, expected, atol=1e-10)

    def test_second_order_on_the_line_under_affine_and_curved_maps(self):
        start = Gaussian([0.2], [[0.5]])
        affine, curved, w2 = [], [], []
        for n in (100, 200, 400):
            grid = Grid(-8, 8, n)
            mu = start.to_density(grid)
            image = mu.push(lambda x: 1.31 * x - 0.4)
            affine.append(l1(image, Gaussian([1.31 * 0.2 - 0.4], [[1.31**2 * 0.5]]).to_density(grid)))
            w2.append(w2_squared(image, Gaussian([1.31 * 0.2 - 0.4], [[1.31**2 * 0.5]])).sqrt().item())
            law = Density.from_log_prob(  # the law of sinh(X)
                lambda x: start.log_prob(x.asinh()) - 0.5 * (1 + x[:, 0] ** 2).log(), Grid(-40, 40, 5 * n)
            )
            curved.append(l1(start.to_density(law.grid).push(torch.sinh), law))
        assert order(affine) > 1.8
        assert order(curved) > 1.8
        assert order(w2) > 1.8

    def test_little_diffusion_in_many_small_steps(self):
        grid = Grid(-8, 8, 160)
        mu = Gaussian([-1.0], [[0.5]]).to_density(grid)
        variance = mu.cov.item()
        for _ in range(50):
            mu = mu.push(lambda x: x + 0.043)
        assert mu.mean.item() == pytest.approx(-1 + 50 * 0.043, abs=1e-3)
        assert mu.cov.item() == pytest.approx(variance, abs=2e-3)  # cloud in cell would add 50·h²/6 = 0.083

    @pytest.mark.parametrize("dim", [2, 3])
    def test_moments_of_affine_maps_are_exact(self, dim: int):
        g = torch.Generator().manual_seed(1)
        A = torch.eye(dim) + 0.25 * torch.randn(dim, dim, generator=g)
        b = 0.2 * torch.randn(dim, generator=g)
        mu = Gaussian(torch.zeros(dim), torch.eye(dim) * 0.6).to_density(
            Grid((-5,) * dim, (5,) * dim, 60 if dim == 2 else 32)
        )
        nu = mu.push(lambda x: x @ A.mT + b)
        assert torch.allclose(nu.mean, A @ mu.mean + b, atol=1e-10)
        assert torch.allclose(nu.cov, A @ mu.cov @ A.mT, atol=1e-4)

    def test_mean_is_exact_also_where_the_limiter_acts(self):
        grid = Grid((-2, -2), (2, 2), 40)
        values = torch.zeros(40, 40)
        values[18:24, 15:20] = 1 / (30 * grid.volume)
        mu, A = Density(values, grid), torch.tensor([[0.8, -0.5], [0.4, 1.1]])
        nu = mu.push(lambda x: x @ A.mT)
        assert torch.allclose(nu.mean, A @ mu.mean, atol=1e-14)
        assert (nu.values >= 0).all()

    def test_rotation_converges_in_total_variation(self):
        c, s = math.cos(0.6), math.sin(0.6)
        A, S = torch.tensor([[c, -s], [s, c]]), torch.diag(torch.tensor([1.0, 0.4]))
        errors = []
        for n in (30, 60, 120):
            grid = Grid((-6, -6), (6, 6), n)
            image = Gaussian(torch.zeros(2), S).to_density(grid).push(lambda x: x @ A.mT)
            errors.append(l1(image, Gaussian(torch.zeros(2), A @ S @ A.mT).to_density(grid)))
        assert errors[1] < errors[0] / 3.5
        assert errors[2] < 3e-3

    def test_what_leaves_stays_at_a_wall_or_comes_round(self):
        values = torch.zeros(10)
        values[7] = 10
        for periodic, cell in ((False, 9), (True, 2)):
            nu = Density(values, Grid(0, 1, 10, periodic)).push(lambda x: x + 0.5)
            assert nu.masses[cell].item() == pytest.approx(1, abs=1e-12)

    def test_folding_maps_of_the_line(self):
        mu = Gaussian([0.0], [[1.0]]).to_density(Grid(-7, 7, 140))
        nu = mu.push(torch.abs)
        assert nu.mean.item() == pytest.approx(math.sqrt(2 / math.pi), abs=2e-3)
        assert nu.masses[:69].sum() < 1e-6

    def test_bad_maps(self):
        mu = rough(GRIDS[0])
        with pytest.raises(ValueError, match="to shape"):
            mu.push(lambda x: x[..., 0])
        with pytest.raises(ValueError, match="NaN or infinity"):
            mu.push(lambda x: x.log())


class TestMove:
    @pytest.mark.parametrize("grid", GRIDS)
    def test_mass_and_positivity_at_the_stable_step(self, grid: Grid):
        mu, g = rough(grid), torch.Generator().manual_seed(3)
        centre = torch.rand(grid.dim, generator=g)
        tangent = Velocity(lambda x: torch.sin(3 * (x - centre)).cumsum(-1))
        stable = mu.stable_step(tangent).item()
        for _ in range(20):
            mu = mu.move(tangent, min(stable, mu.stable_step(tangent).item()))
            assert mu.mass.item() == pytest.approx(1, abs=2e-14)
            assert (mu.values >= 0).all()

    @given(
        st.lists(st.floats(0, 1), min_size=8, max_size=8).filter(lambda v: sum(v) > 0.1),
        st.lists(st.floats(-5, 5), min_size=8, max_size=8),
        st.booleans(),
    )
    def test_no_cell_is_emptied_whatever_the_velocity(self, values: list[float], v: list[float], periodic: bool):
        weights, speeds = torch.tensor(values), torch.tensor(v)
        grid = Grid(0, 1, 8, periodic)
        mu = Density(weights / weights.sum() / grid.volume, grid)
        tangent = Velocity(lambda x: speeds[: x.shape[-2], None].expand_as(x))
        tau = min(mu.stable_step(tangent).item(), 100.0)
        faces = torch.stack([mu.values, mu.move(tangent, tau).values])
        assert (faces >= 0).all()
        assert faces.sum(-1).tolist() == pytest.approx([8, 8], abs=1e-12)

    def test_the_stable_step_is_the_documented_one(self):
        grid = Grid((0, 0), (1, 2), (10, 10))
        mu = Density(torch.full((10, 10), 0.5), grid)
        rotation = Velocity(lambda x: torch.stack([x[..., 1] * 0 + 3, x[..., 0] * 0 - 1], -1))
        assert mu.stable_step(rotation).item() == pytest.approx(1 / (2 * 3 / 0.1 + 2 * 1 / 0.2))
        heat = Wasserstein().descent(0.7 * Entropy(), mu)
        assert mu.stable_step(heat).item() == pytest.approx(1 / (2 * 0.7 * (100 + 25)))
        Q = torch.diag(torch.tensor([2.0, 0.5]))
        assert mu.stable_step(Wasserstein(Q).descent(Entropy(), mu)).item() == pytest.approx(1 / (2 * (200 + 12.5)))

    def test_a_larger_step_is_refused_with_advice(self):
        mu = Gaussian([0.0], [[1.0]]).to_density(Grid(-6, 6, 60))
        stable = mu.stable_step(Wasserstein().descent(Entropy(), mu)).item()
        Forward(Entropy())(mu, 0.0, stable)
        with pytest.raises(ValueError, match=rf"tau = 0.1 .* stable step {stable:.6g}.*smaller steps.*Backward.*Heat"):
            Forward(Entropy())(mu, 0.0, 0.1)

    @pytest.mark.parametrize(
        ("F", "Q"),
        [
            (Entropy(), None),
            (KL(Gaussian([0.5, 0.0], [[0.6, 0.2], [0.2, 0.9]])), torch.tensor([[1.0, 0.7], [0.7, 0.8]])),
            (PorousMedium(2) + Potential(lambda x: x.square().sum(-1)), None),
            (Interaction(kernels.RBF(0.5)) + 0.5 * Entropy(), None),
        ],
    )
    def test_the_energy_falls_at_the_stable_step_from_rough_data(self, F, Q: Tensor | None):
        metric = Wasserstein(Q)
        grid = Grid((-4, -4), (4, 4), (24, 30))
        noise = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) + 0.05
        mu = Density(noise / noise.sum() / grid.volume, grid)
        energies = [F(mu)]
        for _ in range(60):
            mu = mu.move(metric.descent(F, mu), mu.stable_step(metric.descent(F, mu)).item())
            energies.append(F(mu))
        assert (torch.stack(energies).diff() < 1e-12).all()

    def test_equilibrium_is_kept_and_reached(self):
        target = Gaussian([0.4], [[0.5]])
        F, grid = KL(target), Grid(-5, 5, 60)
        still = Density.from_masses(torch.softmax(target.log_prob(grid.points(torch.zeros(()))), -1), grid)
        assert torch.allclose(Forward(F)(still, 0.0, 0.004).mu.values, still.values, atol=1e-12)
        mu = Gaussian([-0.5], [[0.3]]).to_density(grid)
        for _ in range(900):
            mu = Forward(F)(mu, 0.0, 0.004).mu
        assert l1(mu, still) < 2e-3  # 0.9·e^(−2·3.6) of the first mean

    @pytest.mark.parametrize("use_field", [False, True])
    def test_second_order_in_space_against_ornstein_uhlenbeck(self, use_field: bool):
        target, start, T = Gaussian([0.0], [[1.0]]), Gaussian([1.0], [[0.4]]), 0.25
        decay = math.exp(-T)
        exact, errors = Gaussian([decay], [[1 + decay**2 * (0.4 - 1)]]), []
        for n, steps in ((40, 20), (80, 80), (160, 320)):  # tau proportional to h²
            mu = start.to_density(Grid(-6, 6, n))
            for _ in range(steps):
                tangent = Wasserstein().descent(KL(target), mu)
                mu = mu.move(Velocity(tangent.field) if use_field else tangent, T / steps)
            errors.append(l1(mu, exact.to_density(mu.grid)))
        assert order(errors) > 1.7

    def test_an_oblique_mobility_moves_the_covariance_as_it_should(self):
        Q = torch.tensor([[1.0, 0.6], [0.6, 0.7]])
        mu = Gaussian([0.0, 0.0], [[0.5, 0.0], [0.0, 0.5]]).to_density(Grid((-5, -5), (5, 5), 80))
        cov, tau, steps = mu.cov, 1e-3, 20
        for _ in range(steps):
            mu = Forward(Entropy(), Wasserstein(Q))(mu, 0.0, tau).mu
        assert torch.allclose((mu.cov - cov) / (2 * tau * steps), Q, atol=2e-2)

    def test_flux_and_sums(self):
        grid = Grid((0, 0), (1, 1), (8, 6), (True, False))
        mu = rough(grid)
        J = (1e-3 * mu.values, 1e-3 * mu.values[:, :-1])
        both = Flux(J) + Velocity(torch.zeros_like)
        nu = mu.move(both, 1.0)
        d0 = (J[0] - J[0].roll(1, 0)) / grid.spacing[0]
        d1 = torch.nn.functional.pad(J[1], (1, 1)).diff(dim=1) / grid.spacing[1]
        assert torch.allclose(nu.values, mu.values - d0 - d1)
        assert mu.stable_step(both).item() == pytest.approx(1 / (1e-3 * (8 + 6)))
        with pytest.raises(ValueError, match="stable step"):
            mu.move(both, 100.0)

    def test_what_does_not_fit_is_refused(self):
        mu = rough(Grid(0, 1, 8))
        with pytest.raises(TypeError, match="not a Growth"):
            mu.move(Growth(lambda x: x[..., 0]), 0.1)
        with pytest.raises(ValueError, match=r"faces\[0\] has shape \(8,\); .*\(7,\)"):
            mu.move(Flux((torch.zeros(8),)), 0.1)
        with pytest.raises(ValueError, match="NaN or infinite on faces"):
            mu.move(Velocity(lambda x: x / 0), 0.1)
        with pytest.raises(ValueError, match="same shape"):
            mu.move(Velocity(lambda x: x[..., 0]), 0.1)


class TestDiffuse:
    @pytest.mark.parametrize("dim", [1, 2, 3])
    def test_converges_to_the_gaussian_at_second_order(self, dim: int):
        S, t, errors = torch.eye(dim) * 0.3 + 0.1, 0.2, []
        sizes = {1: (50, 100, 200), 2: (30, 60, 120), 3: (16, 32)}[dim]
        for n in sizes:
            mu = Gaussian(torch.full((dim,), 0.2), S).to_density(Grid(-6, 6, (n,) * dim))
            nu = Heat()(mu, 0.0, t).mu
            exact = Gaussian(torch.full((dim,), 0.2), S + 2 * t * torch.eye(dim)).to_density(mu.grid)
            errors.append(l1(nu, exact))
        assert order(errors) > (1.6 if dim == 3 else 1.9)

    def test_the_moments_are_exact(self):
        mu = bump(Grid((-3, -4), (3, 5), (60, 50)))
        cov = torch.diag(torch.tensor([0.02, 0.07]))
        nu = mu.diffuse(cov)
        assert torch.allclose(nu.mean, mu.mean, atol=1e-12)
        assert torch.allclose(nu.cov, mu.cov + cov, atol=1e-9)

    @pytest.mark.parametrize("grid", [*GRIDS, Grid(0, 1, 1500), Grid(0, 1, 1500, periodic=True)])
    @pytest.mark.parametrize("variance", [1e-6, 0.01, 3.0, 1e6])
    def test_positive_conservative_and_a_semigroup(self, grid: Grid, variance: float):
        mu, cov = rough(grid), variance * torch.eye(grid.dim)
        nu = mu.diffuse(cov)
        assert nu.mass.item() == pytest.approx(1, abs=1e-14)
        assert (nu.values >= 0).all()
        twice = mu.diffuse(0.3 * cov).diffuse(0.7 * cov)
        assert torch.allclose(twice.values, nu.values, rtol=0, atol=1e-12 * nu.values.max().item())
        assert torch.allclose(mu.diffuse(0 * cov).values, mu.values, rtol=1e-14, atol=1e-13)

    @pytest.mark.parametrize("n", [64, 1100])
    @pytest.mark.parametrize("k", [1, 5])
    def test_waves_decay_at_the_discrete_rate(self, n: int, k: int):
        grid, rate = circle(n, k)
        x = grid.points(torch.zeros(()))[:, 0]
        mu = Density((1 + 0.5 * torch.cos(k * x)) / (2 * math.pi), grid)
        nu = mu.diffuse(torch.tensor([[0.2]]))
        expected = (1 + 0.5 * math.exp(-0.1 * rate) * torch.cos(k * x)) / (2 * math.pi)
        assert torch.allclose(nu.values, expected, atol=1e-14)

    def test_walls_reflect(self):
        grid = Grid(0, math.pi, 50)
        x = grid.points(torch.zeros(()))[:, 0]
        mu = Density((1 + 0.5 * torch.cos(3 * x)) / math.pi, grid)
        rate = (2 * math.sin(1.5 * grid.spacing[0]) / grid.spacing[0]) ** 2
        expected = (1 + 0.5 * math.exp(-0.1 * rate) * torch.cos(3 * x)) / math.pi
        assert torch.allclose(mu.diffuse(torch.tensor([[0.2]])).values, expected, atol=1e-14)

    def test_tails_keep_their_digits(self):
        from scipy.special import ive

        values = torch.zeros(401)
        values[200] = 401 / 4
        nu = Density(values, Grid(-2, 2, 401)).diffuse(torch.tensor([[0.001]]))
        s = 0.001 / (2 * (4 / 401) ** 2)
        tail = torch.tensor([ive(k, 2 * s) for k in range(80)])
        assert tail.min() < 1e-60
        assert torch.allclose(nu.masses[200:280], tail, rtol=1e-11, atol=0)

    def test_correlated_noise_is_refused(self):
        mu = rough(GRIDS[2])
        with pytest.raises(ValueError, match=r"off-diagonal entry 0.5.*rotated.*Particles.*Backward"):
            mu.diffuse(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        with pytest.raises(ValueError, match="dimension 2"):
            mu.diffuse(torch.eye(3))


class TestConvolve:
    @pytest.mark.parametrize("grid", [g for g in GRIDS if g.dim < 3 or g.n < 400])
    @pytest.mark.parametrize("vector", [False, True])
    def test_fft_agrees_with_all_pairs(self, grid: Grid, vector: bool):
        mu, weights = rough(grid), torch.arange(4.0, grid.dim + 4)

        def W(z: Tensor) -> Tensor:
            return torch.exp(
                -((z / torch.tensor(grid.period)).square() * weights).sum(-1) * 30
            )  # nothing half-way round

        kernel = pairwise.Slope(W) if vector else W
        assert torch.allclose(mu.convolve(kernel), mu.convolve(kernel, mu.points), atol=1e-11)

    def test_energy_and_gradient_of_an_interaction(self):
        mu = Gaussian([0.5], [[0.4]]).to_density(Grid(-4, 4, 90))
        F = Interaction(lambda z: 0.5 * z.square().sum(-1))
        assert F(mu).item() == pytest.approx(0.5 * mu.cov.item(), abs=1e-12)
        assert torch.allclose(F.gradient(mu), mu.points - mu.mean, atol=1e-11)

    def test_half_way_round_a_circle_the_two_ways_cancel(self):
        mu = Density(torch.ones(20), Grid(0, 1, 20, True))
        force = mu.convolve(pairwise.Slope(lambda z: 0.5 * z.square().sum(-1)))
        assert torch.allclose(force, torch.zeros(20, 1), atol=1e-15)

    def test_w_is_called_once(self):
        calls = []
        rough(GRIDS[2]).convolve(lambda z: calls.append(z.shape) or z[..., 0] * 0)
        assert calls == [torch.Size([24 * 40, 2])]

    def test_an_integrable_singularity_counts_by_its_average(self):
        def log(z: Tensor) -> Tensor:
            return -z.norm(dim=-1).log()

        uniform = [Interaction(log)(Density(torch.ones(n), Grid(0, 1, n))).item() for n in (100, 200)]
        assert uniform == [pytest.approx(0.75, abs=2e-3), pytest.approx(0.75, abs=1e-3)]  # −½∬ log|x − y| = 3/4

    def test_the_circle(self):
        grid, _ = circle(48, 1)
        theta = grid.points(torch.zeros(()))[:, 0]
        mu = Density((1 + 0.6 * torch.cos(theta - 0.4)) / (2 * math.pi), grid)
        W = kernels.Cosine([-1.0])
        assert torch.allclose(mu.convolve(W), -0.3 * torch.cos(theta - 0.4), atol=1e-14)
        assert torch.allclose(mu.convolve(W, theta[:, None]), mu.convolve(W), atol=1e-14)

    @pytest.mark.parametrize("periodic", [True, (True, False)])
    def test_the_shortest_way_round(self, periodic):
        grid = Grid((0, 0), (1, 1), 7, periodic)
        mu, x = rough(grid), torch.rand(5, 2)
        for kernel in (kernels.Riesz(2), pairwise.Slope(kernels.Riesz(2))):
            direct = pairwise.convolve(_opaque(kernel), x, mu.points, mu.masses, grid)
            assert torch.allclose(mu.convolve(kernel, x), direct)

    def test_bad_kernels(self):
        mu = rough(GRIDS[0])
        with pytest.raises(ValueError, match="W must map displacements"):
            mu.convolve(lambda z: z)
        with pytest.raises(ValueError, match=r"W\(0\) is NaN"):
            mu.convolve(lambda z: z[..., 0] / z[..., 0])
        with pytest.raises(ValueError, match="finite away from 0"):
            mu.convolve(lambda z: 1 / (z[..., 0] - 10 * mu.grid.spacing[0]).round(decimals=9))


def _opaque(kernel):
    return pairwise.Slope(_opaque(kernel.W)) if isinstance(kernel, pairwise.Slope) else lambda z: kernel(z)


class TestConversions:
    @pytest.mark.parametrize("cov", [[[0.5, 0.0], [0.0, 0.8]], [[0.5, 0.45], [0.45, 0.8]]])
    def test_gaussian_cell_masses(self, cov: list):
        mu = Gaussian([0.3, -0.2], cov)
        fine, grid = mu.to_density(Grid(-6, 6, (240, 240))), Grid(-6, 6, (48, 48))
        coarse = mu.to_density(grid)
        assert torch.allclose(fine.to_density(grid).values, coarse.values, rtol=1e-7, atol=1e-12)
        sheppard = torch.diag(torch.full((2,), grid.spacing[0] ** 2 / 12))
        assert torch.allclose(coarse.cov, mu.cov + sheppard, atol=1e-6)

    def test_gaussian_tails_keep_their_digits(self):
        values = Gaussian([0.0], [[1.0]]).to_density(Grid(-30, 30, 60)).masses
        assert torch.allclose(values, values.flip(-1), rtol=1e-10, atol=0)
        x = torch.tensor(29.0)
        tail = (torch.special.log_ndtr(-x).exp() - torch.special.log_ndtr(-x - 1).exp()).item()
        assert 0 < tail < 1e-180
        assert values[-1].item() == pytest.approx(tail, rel=1e-9, abs=0)

    def test_gaussian_wraps_round_a_torus(self):
        grid = Grid((0, 0), (1, 1), 16, True)
        for cov in (0.09 * torch.eye(2), torch.tensor([[0.09, 0.03], [0.03, 0.05]])):
            mu = Gaussian([7.2, -0.1], cov).to_density(grid)
            mode = mu.expect(lambda x: torch.cos(2 * math.pi * (x[..., 0] - 0.2)))
            h = grid.spacing[0]
            expected = math.exp(-2 * math.pi**2 * 0.09) * math.sin(math.pi * h) / (math.pi * h)
            assert mode.item() == pytest.approx(expected, abs=1e-9)

    def test_a_grid_that_misses_mass_is_refused(self):
        with pytest.raises(ValueError, match="holds only 0.6826894"):
            Gaussian([0.0], [[1.0]]).to_density(Grid(-1, 1, 20))
        with pytest.raises(ValueError, match="holds only 0.5 "):
            Particles(torch.tensor([[0.5], [2.0]])).to_density(Grid(0, 1, 4))
        with pytest.raises(ValueError, match="holds only 0.5 "):
            Density(torch.ones(4), Grid(0, 1, 4)).to_density(Grid(0, 0.5, 4))
        with pytest.raises(ValueError, match="at least 14.4 times as many cells"):
            Gaussian([0.0, 0.0], [[1e-4, 5e-5], [5e-5, 1e-4]]).to_density(Grid(-1, 1, (2, 2)))
        with pytest.raises(ValueError, match="dimension 2, but the grid has 1"):
            Gaussian([0.0, 0.0], torch.eye(2)).to_density(Grid(-9, 9, 10))

    def test_particles_give_their_histogram(self):
        cloud = Particles(torch.tensor([[0.1], [0.15], [0.6], [1.0]]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
        assert torch.allclose(cloud.to_density(Grid(0, 1, 4)).masses, torch.tensor([0.3, 0.0, 0.3, 0.4]))
        assert torch.allclose(cloud.to_density(Grid(0, 1, 4, True)).masses, torch.tensor([0.7, 0.0, 0.3, 0.0]))

    @pytest.mark.parametrize("grid", GRIDS)
    def test_samples_follow_the_density(self, grid: Grid):
        mu = rough(grid)
        cloud = mu.to_particles(40_000, torch.Generator().manual_seed(5))
        assert cloud.x.shape == (40_000, grid.dim)
        again = cloud.to_density(grid)
        assert (again.masses[mu.masses == 0] == 0).all()
        chi2 = ((again.masses - mu.masses).square() / mu.masses.clamp_min(1e-12)).sum() * 40_000
        assert chi2.item() < grid.n + 6 * math.sqrt(2 * grid.n)
        inside = grid.wrap(cloud.x)
        assert torch.allclose(cloud.log_density, mu.log_prob()[grid.cells(inside)])

    def test_gaussian_and_particles_to_particles(self):
        mu = Gaussian(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.5], [0.5, 2.0]]))
        cloud = mu.to_particles(50_000, torch.Generator().manual_seed(2))
        assert torch.allclose(cloud.mean, mu.mean, atol=0.03)
        assert torch.allclose(cloud.cov, mu.cov, atol=0.05)
        assert torch.allclose(cloud.entropy(), mu.entropy(), atol=0.03)
        weighted = Particles(torch.tensor([[0.0], [1.0]]), torch.tensor([0.25, 0.75]), torch.tensor([1.0, 2.0]))
        drawn = weighted.to_particles(20_000, torch.Generator().manual_seed(3))
        assert drawn.mean.item() == pytest.approx(0.75, abs=0.015)
        assert torch.equal(drawn.log_density, 1 + drawn.x[:, 0])

    def test_regridding_keeps_mass_and_refines_exactly(self):
        mu = rough(Grid((0, 0), (1, 2), (4, 6)))
        fine = mu.to_density(Grid((0, 0), (1, 2), (8, 18)))
        assert torch.allclose(fine.values[::2, ::3], mu.values, rtol=1e-12)
        assert torch.allclose(fine.to_density(mu.grid).values, mu.values, rtol=1e-12)


class TestBatch:
    @pytest.mark.parametrize("grid", GRIDS)
    def test_a_batch_equals_single_runs(self, grid: Grid):
        mu = bump(grid, 2)
        scale = torch.tensor([0.7, 1.9])[:, None, None]
        F = KL(lambda x: x.square().sum(-1))
        W = kernels.RBF(0.7)
        x = mu.points[:, ::3]
        covs = torch.stack([0.01 * torch.eye(grid.dim), 0.3 * torch.eye(grid.dim)])

        def results(mu: Density, scale: Tensor, covs: Tensor, x: Tensor) -> list[Tensor]:
            return [
                mu.mean,
                mu.cov,
                mu.entropy(),
                mu.expect(lambda x: x),
                mu.push(lambda x: scale * x.sin()).values,
                mu.diffuse(covs).values,
                mu.diffuse(covs[0] if covs.ndim == 4 else covs).values,
                mu.move(Wasserstein().descent(F, mu), 1e-4).values,
                mu.move(Velocity(lambda x: scale * x), 1e-3).values,
                mu.convolve(W),
                mu.convolve(W, x),
                mu.interact(W),
                mu.log_prob(x),
                mu.score(x),
                mu.score(),
                Interaction(W).gradient(mu),
            ]

        batch = results(mu, scale, covs, x)
        for i in range(2):
            for whole, single in zip(batch, results(item(mu, i), scale[i], covs[i], x[i]), strict=True):
                assert torch.allclose(whole[i], single, rtol=1e-11, atol=1e-13)

    def test_batched_conversions(self):
        grid = Grid(-9, 9, 50)
        mu = Gaussian(torch.tensor([[0.0], [1.0]]), torch.tensor([[[1.0]], [[2.0]]]))
        density = mu.to_density(grid)
        assert density.batch == (2,)
        assert torch.equal(density.values[1], Gaussian([1.0], [[2.0]]).to_density(grid).values)
        cloud = density.to_particles(1000, torch.Generator().manual_seed(0))
        assert cloud.x.shape == (2, 1000, 1)
        assert cloud.to_density(grid).values.shape == (2, 50)

    def test_potentials_that_differ_over_the_batch(self):
        mu = bump(Grid(-2, 2, 30), 2)
        centre = torch.tensor([0.0, 1.0])[:, None, None]
        F = Potential(lambda x: 0.5 * (x - centre).square().sum(-1))
        assert torch.allclose(F.gradient(mu), mu.points - centre)
        assert Forward(F)(mu, 0.0, 0.01).mu.mean.shape == (2, 1)


@pytest.mark.needs_cuda
def test_cuda_agrees_with_cpu():
    grid = Grid((-4, -4), (4, 4), (40, 30), (False, True))
    mu = bump(grid, 2)
    there = mu.with_state(values=mu.values.cuda())
    for act in (
        lambda m: m.push(lambda x: 0.9 * x + 0.1 * x.flip(-1)),
        lambda m: m.diffuse(0.1 * torch.eye(2).to(m.values)),
        lambda m: m.move(Wasserstein().descent(KL(lambda x: x.square().sum(-1)), m), 1e-3),
    ):
        assert act(there).values.is_cuda
        assert torch.allclose(act(there).values.cpu(), act(mu).values, atol=1e-12)
    assert torch.allclose(there.convolve(kernels.RBF(1.0)).cpu(), mu.convolve(kernels.RBF(1.0)), atol=1e-12)
    assert there.to_particles(10, torch.Generator("cuda").manual_seed(0)).x.is_cuda
