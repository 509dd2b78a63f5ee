"""Interaction energies against closed forms on every measure; what their kernels may be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import Gaussian, Interaction, Particles, Potential, Torus
from otprox.functionals.atom import NotConvex
from otprox.kernels import RBF, Bilinear, Cosine, Energy, Laplace, Riesz
from otprox.measures import Density, Grid, Quantiles


def half_square(z: Tensor) -> Tensor:
    return 0.5 * z.square().sum(-1)


def norm(z: Tensor) -> Tensor:
    return z.norm(dim=-1)


def log_gas(z: Tensor) -> Tensor:
    return -z.norm(dim=-1).log()


def cloud(n: int = 9, d: int = 2, seed: int = 0, batch: tuple[int, ...] = ()) -> Particles:
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(*batch, n, generator=g) + 0.1
    return Particles(torch.randn(*batch, n, d, generator=g), w / w.sum(-1, keepdim=True))


def uniform(lower: float = 0.0, upper: float = 1.0, n: int = 1000) -> list:
    """The uniform law by quantiles and on a grid."""
    grid = Grid(lower, upper, n)
    levels = (torch.arange(n) + 0.5) / n
    return [Quantiles(lower + (upper - lower) * levels), Density(torch.full((n,), 1 / (upper - lower)), grid)]


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("W", [half_square, lambda z: -0.5 * Riesz(2)(z)])
def test_quadratic_interaction_is_half_the_variance_and_pulls_to_the_mean(W, batch):
    mu = cloud(batch=batch)
    F = Interaction(W)
    torch.testing.assert_close(F(mu), 0.5 * mu.cov.diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(F.gradient(mu), mu.x - mu.mean[..., None, :])
    torch.testing.assert_close((-0.5 * Interaction(Riesz(2)))(mu), F(mu))
    torch.testing.assert_close((-0.5 * Interaction(Riesz(2))).gradient(mu), F.gradient(mu))


@pytest.mark.parametrize("mu", uniform(-1.0, 2.0), ids=lambda mu: type(mu).__name__)
def test_newtonian_interaction_on_the_line(mu):
    """U of length 3, W = |x|: energy ½·3/3, slope 2p − 1 at level p."""
    F = Interaction(norm)
    assert F(mu).item() == pytest.approx(0.5, rel=1e-5)
    x = mu.points[:, 0]
    torch.testing.assert_close(F.gradient(mu)[:, 0], 2 * (x + 1) / 3 - 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mu", uniform(0.3 - 1, 0.3 + 1), ids=lambda mu: type(mu).__name__)
def test_steady_state_of_attraction_and_repulsion(mu):
    """W = |x|²/2 − |x|: U[m − 1, m + 1] is steady with energy −1/6."""
    F = Interaction(lambda z: half_square(z) - norm(z))
    assert F(mu).item() == pytest.approx(-1 / 6, rel=1e-5)
    torch.testing.assert_close(F.gradient(mu), torch.zeros(1000, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [4, 9])
def test_log_gas_is_at_rest_on_hermite_zeros(n):
    """V = x²/2, W = −log|x|: N particles rest at the zeros of H_N over √N; W(0) = ∞ leaves out i = j."""
    jacobi = torch.diag((torch.arange(1, n) / 2).sqrt(), 1)
    zeros = torch.linalg.eigvalsh(jacobi + jacobi.mT)
    mu = Particles((zeros / math.sqrt(n))[:, None])
    F = Potential(half_square) + Interaction(log_gas)
    torch.testing.assert_close(F.gradient(mu), torch.zeros(n, 1), rtol=0, atol=1e-12)
    distances = (mu.x - mu.x.mT)[~torch.eye(n, dtype=torch.bool)].abs()
    torch.testing.assert_close(Interaction(log_gas)(mu), -0.5 * distances.log().sum() / n**2)


@given(n=st.integers(2, 12), d=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_virial_of_the_log_gas(n, d, seed):
    """E⟨x, ∇φ⟩ = −(N − 1)/(2N)."""
    mu = Particles(cloud(n, d, seed).x)
    virial = (mu.x * Interaction(log_gas).gradient(mu)).sum(-1).mean()
    assert virial.item() == pytest.approx(-(n - 1) / (2 * n), rel=1e-9)


@pytest.mark.parametrize("W", [half_square, RBF(0.8), Laplace(0.8), Energy(), log_gas])
@given(seed=st.integers(0, 2**31))
def test_translation_invariance_and_no_net_force(W, seed):
    mu = cloud(seed=seed)
    F = Interaction(W)
    torch.testing.assert_close(F(mu.push(lambda x: x + 3.0)), F(mu), rtol=1e-9, atol=1e-10)
    force = mu.expect(lambda x: F.gradient(mu))
    torch.testing.assert_close(force, torch.zeros(2), rtol=0, atol=1e-10)


def test_gaussian_closed_forms(gaussians):
    mu = Gaussian(torch.stack([gaussians.m0, gaussians.mq]), torch.stack([gaussians.S0, gaussians.Q]))
    F = Interaction(half_square)
    torch.testing.assert_close(F(mu), 0.5 * mu.cov.diagonal(dim1=-2, dim2=-1).sum(-1))
    shift, hessian = F.bures_gradient(mu)
    torch.testing.assert_close(shift, torch.zeros(2, 3))
    torch.testing.assert_close(hessian, torch.eye(3).expand(2, 3, 3))
    rbf = Interaction(RBF(2.0))
    scale = torch.linalg.det(torch.eye(3) + 2 * mu.cov / 4).rsqrt()  # E exp(−|Z|²/2h²), Z ~ N(0, 2Σ)
    torch.testing.assert_close(rbf(mu), 0.5 * scale, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        rbf.bures_gradient(mu)[1],
        -scale[:, None, None] * torch.linalg.inv(4 * torch.eye(3) + 2 * mu.cov),
        rtol=1e-5,
        atol=1e-8,
    )


def test_cosine_on_a_circle():
    """Kuramoto: ½∬−cos = −½|E e^{iθ}|², on angles of any turn."""
    mu = Particles(2 * cloud(20, 1).x, domain=Torus(2 * math.pi))
    z = torch.exp(1j * mu.x).mean()
    F = Interaction(Cosine([-1.0]))
    torch.testing.assert_close(F(mu), -0.5 * z.abs() ** 2)
    torch.testing.assert_close(F.gradient(mu), (mu.x - z.angle()).sin() * z.abs())


def test_gradient_is_differentiable_in_the_particles():
    """d/dX of |∇φ|² by autograd and by central differences."""
    mu = cloud()
    F = Interaction(RBF(0.8))

    def speed(x: Tensor) -> Tensor:
        return F.gradient(mu.with_state(x=x)).square().sum()

    assert torch.autograd.gradcheck(speed, (mu.x.clone().requires_grad_(),))


@pytest.mark.parametrize(
    ("F", "c", "expected"),
    [
        (Interaction(norm), 1.0, None),
        (Interaction(norm, curvature=0.0), 1.0, 0.0),
        (Interaction(half_square, curvature=1.0), 2.0, 0.0),  # translations cost nothing
        (Interaction(half_square, curvature=1.0), -1.0, None),
        (Interaction(lambda z: -half_square(z), curvature=-1.0), 3.0, -3.0),
        (Interaction(RBF(0.5)), 1.0, -4.0),
        (Interaction(RBF(0.5)), -1.0, -8 * math.exp(-1.5)),
        (Interaction(Cosine([-1.0])), 2.0, -2.0),
        (Interaction(Energy()), 1.0, None),
        (Interaction(Energy()), -1.0, 0.0),
        (Interaction(Riesz(2)), 1.0, -2.0),
        (Interaction(Laplace(0.5)), -2.0, -8.0),
        (Interaction(norm), 0.0, 0.0),
    ],
)
def test_convexity(F, c, expected):
    found = F.convexity(c)
    assert found == expected if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize("c", [1.0, -1.0])
@pytest.mark.parametrize("W", [RBF(0.8), Cosine([-1.0, 0.3]), Riesz(2)], ids=str)
@given(seed=st.integers(0, 2**31), t=st.floats(0.1, 0.9))
def test_convexity_along_geodesics(W, c, seed, t):
    """F(μ_t) ≤ (1 − t)F(μ_0) + tF(μ_1) − ½λt(1 − t)·W2², between sorted particles on the line."""
    F = Interaction(W)
    a, b = (cloud(6, 1, s).x.sort(-2).values for s in (seed, seed + 1))
    at = [c * F(Particles(x)) for x in (a, (1 - t) * a + t * b, b)]
    slack = (1 - t) * at[0] + t * at[2] - 0.5 * F.convexity(c) * t * (1 - t) * (a - b).square().mean() - at[1]
    assert slack.item() >= -1e-12


def test_what_is_refused():
    with pytest.raises(TypeError, match="Interaction needs a callable W on displacements, not a float"):
        Interaction(1.0)
    with pytest.raises(TypeError, match="not a function of the difference"):
        Interaction(Bilinear())
    wrong = Interaction(lambda z: z.square())
    for mu in [cloud(), cloud(d=1), Gaussian([0.0], [[1.0]]), Gaussian([0.0, 0.0], torch.eye(2)), *uniform()]:
        for call in (wrong, wrong.first_variation, wrong.gradient):
            with pytest.raises(ValueError, match="W must map displacements"):
                call(mu)
    with pytest.raises(ValueError, match=r"W\(0\) is NaN"):
        Interaction(lambda z: norm(z) * norm(z).log())(cloud())
    with pytest.raises(ValueError, match="two particles are at the same place"):
        Interaction(log_gas)(Particles(torch.zeros(3, 2)))
    with pytest.raises(TypeError, match="W is not differentiable"):
        Interaction(lambda z: z.detach().square().sum(-1)).gradient(cloud())


CONVEX = {  # semidefinite among changes that keep the mass, by Bochner's and Schoenberg's theorems
    "RBF": RBF(0.7),
    "Laplace": Laplace(1.0),
    "energy": Energy(),
    "logarithm": log_gas,
    "repulsion of power 1/2": lambda z: -(z.norm(dim=-1) ** 0.5),
}


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", CONVEX)
def test_the_convex_form_on_a_grid_is_the_energy(name, d):
    """Its differences between densities are those of F; the form is convex, and for −W it is refused."""
    import cvxpy as cp

    from otprox.functionals import NotConvex

    grid, F = Grid([-1.0] * d, [1.5] * d, [7] * d), Interaction(CONVEX[name])
    g = torch.Generator().manual_seed(0)
    mus = [Density(p / (p.sum() * grid.volume), grid) for p in torch.rand(2, *grid.shape, generator=g)]
    atom = F.atom(mus[0], 0.7)
    rho = cp.Variable(grid.n)
    expression = atom.build(rho, *atom.data)
    assert expression.is_convex()
    found = []
    for mu in mus:
        rho.value = mu.values.flatten().numpy()
        found.append(float(expression.value))
    assert found[1] - found[0] == pytest.approx(0.7 * (F(mus[1]) - F(mus[0])).item(), rel=1e-9)
    with pytest.raises(NotConvex, match="keep the mass"):
        F.atom(mus[0], -1.0)
    with pytest.raises(NotConvex, match="keep the mass"):
        Interaction(half_square).atom(mus[0], 1.0)  # convex in positions, and concave in the density
    Interaction(half_square).atom(mus[0], -1.0)


def test_convolution_on_a_grid_is_the_sum_over_cells():
    """By FFT, against sums over all pairs, with walls and periodic, for W and its slope, singular at 0 or not."""
    for d, periodic in ((1, False), (1, True), (2, (True, False)), (3, False)):
        grid = Grid([-1.0] * d, [1.5] * d, [5 + a for a in range(d)], periodic=periodic)
        p = torch.rand(grid.shape, generator=torch.Generator().manual_seed(d))
        mu = Density(p / (p.sum() * grid.volume), grid)
        x = mu.points
        z = grid.displacement(x[:, None], x[None])
        for W in (half_square, RBF(0.7), lambda z: torch.cos(z).sum(-1) + z.norm(dim=-1) ** 3):
            torch.testing.assert_close(mu.convolve(W), (W(z) * mu.masses).sum(-1))
        value = log_gas(z)
        diagonal = torch.isinf(value)
        cell = torch.stack([log_gas(node) * w for node, w in grid.nodes(8, x)]).sum()
        torch.testing.assert_close(mu.convolve(log_gas), (torch.where(diagonal, cell, value) * mu.masses).sum(-1))


@pytest.mark.parametrize("grid", [Grid(-2.0, 2.0, 12), Grid((0.0, 0.0), (1.0, 2.0), (5, 6))], ids=["line", "plane"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_convexity_in_the_density_is_the_sign_of_the_eigenvalues(grid: Grid, sign: float):
    """Among changes that keep the mass; a constant is convex either way."""
    mu, project = Density(torch.full(grid.shape, 1 / (grid.n * grid.volume)), grid), torch.eye(grid.n) - 1 / grid.n
    waves = [lambda z, k=k: (k * z).cos().prod(-1) * (1 + z.square().sum(-1)) for k in (0.0, 3.0)]
    verdicts = []
    for W in (RBF(0.3), RBF(1.0), *waves, lambda z: 7e5 + 0 * z.sum(-1)):
        matrix = sign * project @ torch.tensor(pairs(W, mu)) @ project
        try:
            Interaction(W).atom(mu, sign)
            verdicts.append(True)
        except NotConvex as error:
            assert "not positive semidefinite" in str(error)
            verdicts.append(False)
        assert verdicts[-1] == (
            torch.linalg.eigvalsh(matrix).min().item() > -1e-9 * max(1.0, matrix.abs().max().item())
        )
    assert len(set(verdicts)) == 2


def pairs(W, mu: Density) -> list[list[float]]:
    """W(x_i − x_j), directly."""
    z = mu.points[:, None] - mu.points[None]
    return (W.profile(z) if isinstance(W, RBF) else W(z)).tolist()
