"""The pseudo-spectral step: the heat flow, Kuramoto's order parameter, Ornstein–Uhlenbeck, orders, what is refused."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox.measures import trigonometric

CIRCLE = 2 * math.pi


def circle(n: int) -> ox.Grid:
    return ox.Grid(0.0, CIRCLE, n, periodic=True)


def wave(grid: ox.Grid, amplitude: float = 0.1, like: Tensor | None = None) -> ox.Density:
    """(1 + amplitude·cos θ)/2π by its cell averages."""
    like = torch.ones(()) if like is None else like
    theta, h = grid.points(like)[:, 0], grid.spacing[0]
    return ox.Density((1 + amplitude * torch.cos(theta) * math.sin(h / 2) / (h / 2)) / CIRCLE, grid)


def kuramoto(K: float, *a: float) -> ox.Functional:
    return 0.5 * ox.Entropy() + K * ox.Interaction(ox.kernels.Cosine([-c for c in a or (1.0,)]))


def times(end: float, tau: float) -> list[float]:
    n = round(end / tau)
    return [end * k / n for k in range(n + 1)]


def run(F: ox.Functional, mu: ox.Density, end: float, tau: float, **observers):
    return ox.record(ox.flow(ox.PseudoSpectral(F), mu, times(end, tau)), **observers)


@pytest.mark.parametrize("shape", [(7,), (8,), (6, 9), (4, 6, 5)])
def test_centres_and_averages_are_inverse(shape):
    grid = ox.Grid(0.0, tuple(1.0 + a for a in range(len(shape))), shape, periodic=True)
    values = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    back = trigonometric.cell_averages(trigonometric.at_centres(values, grid), grid)
    torch.testing.assert_close(back, values)


def test_averages_of_a_wave():
    grid = circle(16)
    values = trigonometric.at_centres(wave(grid, 0.4).values, grid)
    torch.testing.assert_close(values, (1 + 0.4 * torch.cos(grid.points(values)[:, 0])) / CIRCLE)


def test_the_heat_flow_is_exact():
    grid = circle(16)
    out = ox.PseudoSpectral(0.7 * ox.Entropy())(wave(grid, 0.4), 0.0, 1.3).mu
    torch.testing.assert_close(out.values, wave(grid, 0.4 * math.exp(-0.7 * 1.3)).values)


def test_kuramoto_order_parameter_printed():
    """From (1 + 0.1 cos θ)/2π at K = 3/2."""
    printed = {1: 0.064138870123, 2: 0.082164138201, 5: 0.170370964926, 10: 0.471326640039, 20: 0.721756029830}
    tau = 0.05
    r = run(kuramoto(1.5), wave(circle(32)), 20.0, tau, r=ox.observe.order()).series["r"]
    for t, want in printed.items():
        assert r[round(t / tau) - 1].item() == pytest.approx(want, abs=5e-9)  # τ⁴


def test_kuramoto_ends_in_its_stationary_state_at_the_rate_of_the_gap():
    state = ox.exact.kuramoto.Kuramoto(1.5).minimiser()
    F = kuramoto(1.5)
    energy = ox.observe.at_centres(ox.observe.energy(F))
    end = run(F, wave(circle(32), 0.9), 40.0, 0.1, r=ox.observe.order(), free=energy, mass=ox.observe.mass)
    r = end.series["r"]
    assert r[-1].item() == pytest.approx(state.r[0], abs=1e-9)
    a, b = (r[k].item() - state.r[0] for k in (149, 199))
    assert math.log(a / b) / 5.0 == pytest.approx(state.gap, abs=1e-4)
    assert 2 * end.series["free"][-1].item() + math.log(CIRCLE) == pytest.approx(state.energy, abs=1e-12)
    assert (end.series["free"].diff() <= 1e-15).all()
    assert (end.series["mass"] - 1).abs().max() < 1e-13
    theta = end.final.grid.points(r)[:, 0]
    values = trigonometric.at_centres(end.final.values, end.final.grid)
    torch.testing.assert_close(values, state.density(theta), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("K", "a"), [(2.0, (1.0, -1.0)), (1.0, (1.0, 1.0)), (0.9, (1.0, 0.6, 0.4))])
def test_other_coefficients_end_in_their_minimiser(K, a):
    state = ox.exact.kuramoto.Kuramoto(K, a).minimiser()
    grid = circle(48)
    start = state.density(grid.points(torch.ones(()))[:, 0]) + 0.1 / CIRCLE
    final = run(kuramoto(K, *a), ox.Density(start / start.mean() / CIRCLE, grid), 12 / state.gap, 0.2).final
    tick = ox.Tick(0, 0.0, 1.0, final, final, None)
    for k, r in enumerate(state.r, 1):
        assert ox.observe.order(k)(tick).item() == pytest.approx(abs(r), abs=1e-6)


def error(step: ox.Step, mu: ox.Density, want: Tensor, tau: float, end: float = 1.0) -> float:
    final = ox.record(ox.flow(step, mu, times(end, tau))).final
    return (final.values - want).abs().max().item()


def test_fourth_order_in_time_also_when_the_functional_varies():
    V = ox.Potential(lambda x: torch.cos(x[..., 0]) + 0.5 * torch.sin(2 * x[..., 0]))
    F = ox.Varying(lambda t: kuramoto(3.0, 1.0, 0.5) + math.cos(3 * t) * V)
    step, mu = ox.PseudoSpectral(F), wave(circle(48), 0.5)
    want = ox.record(ox.flow(step, mu, times(1.0, 0.0025))).final.values
    errors = [error(step, mu, want, tau) for tau in (0.04, 0.02)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.25)


def test_spectral_in_space():
    """Every four more cells gain two digits, and more as they are more."""
    K = 2.0
    state = ox.exact.kuramoto.Kuramoto(K).minimiser()
    errors = []
    for n in (10, 14, 18):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ox.solvers.ConvergenceWarning)
            final = run(kuramoto(K), wave(circle(n), 0.9), 20.0, 0.05).final
        errors.append(abs(ox.observe.order()(ox.Tick(0, 0.0, 1.0, final, final, None)).item() - state.r[0]))
    assert errors[1] < errors[0] / 50 and errors[2] < errors[1] / 50


@pytest.mark.parametrize("lower", [-9.0, (-9.0, -8.0)])
def test_attraction_in_a_well_keeps_gaussians(lower):
    """V = a|x|²/2, W = b|x|²/2: mean e^{−at}, variance 1/(a+b) + (v₀ − 1/(a+b))e^{−2(a+b)t}; any callables."""
    dim, a, b, t = len(lower) if isinstance(lower, tuple) else 1, 0.5, 1.0, 0.8
    grid = ox.Grid(lower, tuple(-x for x in lower) if dim > 1 else -lower, (48,) * dim, periodic=True)
    F = ox.Entropy() + ox.Potential(lambda x: a * x.square().sum(-1) / 2)
    F = F + b * ox.Interaction(lambda z: z.square().sum(-1) / 2)
    start = ox.Gaussian(torch.tensor([1.0, -0.5][:dim]), torch.diag(torch.tensor([0.6, 0.9][:dim])))
    final = run(F, start.to_density(grid), t, 0.02).final
    rest, v = 1 / (a + b), start.cov.diagonal()
    want = ox.Gaussian(start.mean * math.exp(-a * t), torch.diag(rest + (v - rest) * math.exp(-2 * (a + b) * t)))
    torch.testing.assert_close(final.values, want.to_density(grid).values, rtol=0, atol=2e-7)


def test_attraction_in_a_double_well_rests_where_its_mean_is_consistent():
    """V = x⁴/4 − x²/2, W = x²/2, noise 0.2: the mean solves m = ∫x e^{−(V + (x − m)²/2)/0.2}/Z (Dawson 1983)."""

    def log_density(x: Tensor, m: float) -> Tensor:
        return -(x**4 / 4 - x**2 / 2 + (x - m) ** 2 / 2) / 0.2

    x, m = torch.linspace(-4, 4, 4001), 1.0
    for _ in range(200):
        m = (log_density(x, m).softmax(0) * x).sum().item()
    grid = ox.Grid(-2.6, 2.6, 64, periodic=True)
    F = 0.2 * ox.Entropy() + ox.Potential(lambda x: (x**4 / 4 - x**2 / 2).sum(-1))
    F = F + ox.Interaction(lambda z: z.square().sum(-1) / 2)
    for mean in (m, m - 0.1):
        start = ox.Density.from_log_prob(lambda x, mean=mean: log_density(x[..., 0], mean), grid)
        final = run(F, start, 0.5, 0.01).final
        moved = (final.values - start.values).abs().max().item()
        assert moved < 1e-5 if mean == m else moved > 0.01  # the box wraps what is more than 2.6 apart
    assert 0.5 < m < 1


def test_a_coarse_grid_says_so():
    """At K = 2 mode 3 of the stationary state is I₃(2Kr)/I₀(2Kr) = 20%, the last that 8 cells see of a cosine."""
    state, grid = ox.exact.kuramoto.Kuramoto(2.0).minimiser(), circle(8)
    q = state.density(grid.points(torch.ones(()))[:, 0])
    mu = ox.Density(trigonometric.cell_averages(q / q.mean() / CIRCLE, grid), grid)
    with pytest.warns(ox.solvers.ConvergenceWarning, match="does not resolve the density, its highest modes are"):
        stats = ox.PseudoSpectral(kuramoto(2.0))(mu, 0.0, 0.01).stats
    assert not stats.converged and stats.residual.item() == pytest.approx(0.2, abs=0.01)
    fine = ox.PseudoSpectral(kuramoto(2.0))(wave(circle(64), 0.5), 0.0, 0.01).stats
    assert fine.converged and fine.residual < 1e-12


def test_a_batch_is_single_runs():
    grid = circle(24)
    both = ox.Density(torch.stack([wave(grid, 0.2).values, wave(grid, 0.8).values]), grid)
    V = ox.Potential(lambda x: 0.3 * torch.sin(x[..., 0]))
    together = run(kuramoto(1.5) + V, both, 0.5, 0.1).final.values
    for amplitude, values in zip((0.2, 0.8), together, strict=True):
        torch.testing.assert_close(run(kuramoto(1.5) + V, wave(grid, amplitude), 0.5, 0.1).final.values, values)


def test_float32_stays_float32():
    grid = circle(32)
    mu = wave(grid, like=torch.ones((), dtype=torch.float32))
    final = run(kuramoto(1.5), mu, 10.0, 0.1, r=ox.observe.order())
    assert final.final.values.dtype == torch.float32
    assert final.series["r"][-1].item() == pytest.approx(0.471326640039, abs=1e-4)


@pytest.mark.needs_cuda
def test_on_cuda():
    grid = circle(32)
    mu = wave(grid, like=torch.ones((), device="cuda"))
    r = run(kuramoto(1.5), mu, 5.0, 0.05, r=ox.observe.order()).series["r"][-1]
    assert r.device.type == "cuda" and r.item() == pytest.approx(0.170370964926, abs=1e-8)


def test_order_of_particles_and_of_densities_agree():
    mu = wave(circle(20), 0.6)
    tick = ox.Tick(0, 0.0, 1.0, mu, mu, None)
    assert ox.observe.order()(tick).item() == pytest.approx(0.3, abs=1e-14)
    assert ox.observe.order(2)(tick).item() == pytest.approx(0.0, abs=1e-14)
    x = ox.Particles(torch.tensor([[0.0], [0.25], [1.0]]), domain=ox.Torus(1.0))
    tick = ox.Tick(0, 0.0, 1.0, x, x, None)
    assert ox.observe.order(period=1.0)(tick).item() == pytest.approx(abs(2 + 1j) / 3)
    assert ox.observe.order(4, period=1.0)(tick).item() == pytest.approx(1.0)


def test_what_is_refused():
    mu = wave(circle(16))
    with pytest.raises(TypeError, match="needs a Functional"):
        ox.PseudoSpectral(lambda x: x)
    with pytest.raises(TypeError, match="Density on a periodic Grid, not on Particles"):
        ox.PseudoSpectral(kuramoto(1.0))(ox.Particles(torch.zeros(3, 1)), 0.0, 0.1)
    with pytest.raises(ValueError, match=r"axes \[0\] have walls"):
        ox.PseudoSpectral(kuramoto(1.0))(ox.Density(torch.ones(4), ox.Grid(0, 1, 4)), 0.0, 0.1)
    with pytest.raises(TypeError, match="not PorousMedium"):
        ox.PseudoSpectral(ox.PorousMedium(2.0))(mu, 0.0, 0.1)
    with pytest.raises(ValueError, match="must be ≥ 0, not -1"):
        ox.PseudoSpectral(-1.0 * ox.Entropy())(mu, 0.0, 0.1)
    with pytest.raises(ValueError, match="must not vary"):
        ox.PseudoSpectral(ox.Varying(lambda t: (1 + t) * ox.Entropy()))(mu, 0.0, 0.1)
    with pytest.raises(ValueError, match="does not resolve it, or the step size is too large"):
        run(kuramoto(60.0), wave(circle(8), 0.9), 5.0, 0.05)
    with pytest.raises(ValueError, match="NaN"):
        ox.PseudoSpectral(ox.Potential(lambda x: x[..., 0] * math.nan))(mu, 0.0, 0.1)
    plane = ox.Density(torch.ones(2, 2), ox.Grid(0, (1, 1), 2, periodic=True))
    tick = ox.Tick(0, 0.0, 1.0, plane, plane, None)
    with pytest.raises(ValueError, match="circle"):
        ox.observe.order()(tick)
    wall = ox.Density(torch.ones(2), ox.Grid(0, 1, 2))
    with pytest.raises(TypeError, match="periodic grid"):
        ox.observe.at_centres(ox.observe.mass)(ox.Tick(0, 0.0, 1.0, wall, wall, None))


def test_other_periods_are_refused():
    grid = ox.Grid(0.0, 1.0, 16, periodic=True)
    flat = ox.Density(torch.ones(16), grid)
    with pytest.raises(ValueError, match="Cosine has period .*no multiple"):
        ox.PseudoSpectral(kuramoto(1.0))(flat, 0.0, 0.1)


def test_it_is_differentiable():
    """d r(T)/dε along a change of the start that keeps the mass, by central differences."""
    grid = circle(16)
    start, change = wave(grid, 0.3).values, 0.1 * torch.cos(grid.points(torch.ones(()))[:, 0])

    def r(eps: Tensor) -> Tensor:
        end = ox.record(
            ox.flow(ox.PseudoSpectral(kuramoto(1.5)), mu.with_state(values=start + eps * change), [0, 0.2, 0.4])
        )
        return end.final.expect(lambda x: torch.cos(x[..., 0]))

    mu = wave(grid, 0.3)
    assert torch.autograd.gradcheck(r, (torch.zeros((), requires_grad=True),))


def test_a_broken_run_goes_on(tmp_path):
    path = ox.flow(ox.PseudoSpectral(kuramoto(1.5)), wave(circle(16)), times(2.0, 0.1))
    whole = ox.record(path, r=ox.observe.order()).series["r"]
    broken = iter([True])

    def r(tick: ox.Tick) -> Tensor:
        if tick.k == 7 and next(broken, False):
            raise KeyboardInterrupt
        return ox.observe.order()(tick)

    with pytest.warns(UserWarning, match="interrupted after 7 steps"):
        ox.record(path, checkpoint=tmp_path / "run.npz", r=r)
    assert torch.equal(ox.record(path, checkpoint=tmp_path / "run.npz", r=r).series["r"], whole)
