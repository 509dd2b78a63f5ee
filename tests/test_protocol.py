"""One test that every functional, metric, measure and solver keeps its protocol."""

import dataclasses
import inspect

import pytest
import torch

import otprox as ox
from otprox import functionals, measures, metrics, solvers
from otprox.functionals import Functional
from otprox.lattice import Lattice
from otprox.measures import Measure
from otprox.metrics import Metric
from otprox.solvers import Solver
from otprox.steps import Step


def leaves(base):
    found = [leaf for cls in base.__subclasses__() for leaf in (leaves(cls) or [cls])]
    return [cls for cls in found if cls.__module__.startswith("otprox.")]


def x(n=12, d=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)).sort(0).values


MEASURES = {
    "Gaussian": ox.Gaussian([0.2], [[1.3]]),
    "Particles": ox.Particles(x(), log_density=x()[:, 0]),
    "Quantiles": ox.Quantiles(x()[:, 0]),
    "Density": ox.Gaussian([0.2], [[1.3]]).to_density(ox.Grid(-7.0, 7.0, 40)),
}
FUNCTIONALS = {
    "Potential": ox.Potential(ox.Quadratic([0.0])),
    "Entropy": ox.Entropy(),
    "PorousMedium": ox.PorousMedium(2.0),
    "KL": ox.KL(ox.Gaussian([0.0], [[1.0]])),
    "Interaction": ox.Interaction(lambda z: z.square().sum(-1) / 2),
    "Blob": ox.Blob(0.5),
    "Congestion": ox.Congestion(100.0),
    "Dirichlet": ox.Dirichlet(),
    "Minibatch": ox.Minibatch(
        lambda x, index: 0.5 * (x**2).sum(-1) * len(index) / 4, rows=4, size=2, generator=torch.Generator()
    ),
    "KernelEnergy": functionals.KernelEnergy(ox.kernels.Bilinear()),
    "MMD": ox.MMD(ox.kernels.RBF(0.8), ox.Gaussian([0.0], [[1.0]])),
    "Moments": ox.Moments(lambda p: torch.ones_like(p[..., 0]), [1.0]),
    "Obstacle": ox.Obstacle(lower=0.0, upper=50.0),
    "Sum": ox.Entropy() + ox.Potential(ox.Quadratic([0.0])),
    "Scaled": 2.0 * ox.Entropy(),
    "Varying": ox.Varying(lambda t: t * ox.Entropy()),
}
ON_PARTICLES = ("Blob", "Interaction", "KernelEnergy", "MMD", "Minibatch", "Potential")  # without a density
METRICS = {
    "Wasserstein": ox.Wasserstein(torch.tensor([[2.0]])),
    "Entropic": ox.Entropic(0.1),
    "Landau": ox.Landau(0.0),
    "Mobility": ox.Mobility(lambda rho, x: rho**2),
    "Stein": ox.Stein(ox.kernels.RBF(0.7)),
    "Moving": ox.Moving(lambda t: t * torch.eye(1), rate=lambda t: torch.eye(1)),
}


@pytest.mark.parametrize(("base", "examples"), [(Measure, MEASURES), (Functional, FUNCTIONALS), (Metric, METRICS)])
def test_every_leaf_has_an_example(base, examples):
    assert {cls.__name__ for cls in leaves(base)} == set(examples)


@pytest.mark.parametrize("base", [Measure, Functional, Metric, Step, measures.Tangent])
def test_classes_are_abstract_or_final_frozen_dataclasses(base):
    for cls in leaves(base):
        assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen, cls
        assert not inspect.isabstract(cls), cls
        assert not [sub for sub in cls.__subclasses__() if sub.__module__.startswith("otprox.")], cls
        assert cls.__doc__ and cls.__doc__ != f"{cls.__name__}{inspect.signature(cls)}", cls


@pytest.mark.parametrize("name", MEASURES)
def test_measures(name):
    mu = MEASURES[name]
    assert mu.batch == torch.Size([]) and mu.dim == 1
    assert mu.mean.shape == (1,) and mu.cov.shape == (1, 1) and mu.mass.item() == pytest.approx(1)
    assert mu.points.shape[-1] == 1
    one, first = mu.expect(lambda p: torch.ones_like(p[..., 0])), mu.expect(lambda p: p[..., 0])
    assert one.item() == pytest.approx(1) and first.item() == pytest.approx(mu.mean.item(), abs=1e-10)
    assert mu.convolve(lambda z: z.square().sum(-1)).shape == mu.points.shape[:-1]
    second = mu.interact(lambda z: z.square().sum(-1)).item()
    assert second == pytest.approx(2 * mu.expect(lambda p: (p - mu.mean).square().sum(-1)).item(), rel=1e-8)
    shifted = mu.push(lambda p: p + 0.25)
    binning = 1e-4 if isinstance(mu, ox.Density) else 1e-10  # a shift that is no whole number of cells
    assert type(shifted) is type(mu) and shifted.mean.item() == pytest.approx(mu.mean.item() + 0.25, abs=binning)
    wide = mu.diffuse(torch.tensor([[0.1]]), torch.Generator().manual_seed(0))
    assert type(wide) is type(mu)
    assert set(mu.with_state(**mu.state()).state()) == set(mu.state())
    with pytest.raises(TypeError, match="no field"):
        mu.with_state(nonsense=mu.mean)
    with pytest.raises(TypeError, match="Growth"):
        mu.move(measures.Growth(lambda p: p[..., 0]), 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mu.batch_size = 3


@pytest.mark.parametrize("name", MEASURES)
def test_conversions(name):
    mu = MEASURES[name]
    cloud = mu.to_particles(4000, torch.Generator().manual_seed(0))
    assert isinstance(cloud, ox.Particles) and abs(cloud.mean - mu.mean).item() < 0.1
    density = mu.to_density(ox.Grid(-9.0, 9.0, 60))
    assert isinstance(density, ox.Density) and density.mass.item() == pytest.approx(1)
    assert density.mean.item() == pytest.approx(mu.mean.item(), abs=0.2)
    fit = ox.Gaussian.fit(mu)
    torch.testing.assert_close(fit.cov, mu.cov)


@pytest.mark.parametrize("name", FUNCTIONALS)
def test_functionals(name):
    F = FUNCTIONALS[name].at(1.0)
    supported = 0
    for mu in MEASURES.values():
        if isinstance(mu, ox.Particles) and name not in ON_PARTICLES:
            continue
        try:
            value = F(mu)
        except TypeError as refusal:
            assert "would work" in str(refusal) or "Entropy" in str(refusal)
            continue
        supported += 1
        assert value.shape == mu.batch and torch.isfinite(value)
        assert F.first_variation(mu).shape == mu.points.shape[:-1]
        assert F.gradient(mu).shape == mu.points.shape
        torch.testing.assert_close(sum(c * f(mu) for c, f in F.terms), value)
    assert supported >= 2
    assert all(isinstance(c, float) and isinstance(f, Functional) for c, f in F.terms)
    mu = MEASURES["Gaussian" if name == "Dirichlet" else "Quantiles"]
    for combined in (F + F, 2.0 * F, F * 2.0, F / 0.5):
        assert combined(mu).item() == pytest.approx(2 * F(mu).item())
    assert (F - F)(mu).item() == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(TypeError):
        F + 1.0
    with pytest.raises(TypeError):
        F * F


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    metric = METRICS[name].over(0.0, 0.5)
    assert isinstance(metric, Metric) and metric.over(0.0, 0.5) is not None
    mu = MEASURES["Particles"]
    if name == "Landau":  # on the line there are no collisions
        mu = ox.Particles(torch.randn(12, 2, generator=torch.Generator().manual_seed(0)))
    if name == "Entropic":
        with pytest.raises(TypeError, match="Backward"):
            metric.onsager(mu, mu.x)
        return
    u, v = torch.sin(mu.x), torch.cos(mu.x)
    a, b = (metric.onsager(mu, w) for w in (u, v))
    torch.testing.assert_close(metric.onsager(mu, 2 * u + v), 2 * a + b)
    torch.testing.assert_close((a * v).sum(), (b * u).sum())  # symmetric
    assert ((a * u).sum() >= 0) and isinstance(metric.descent(FUNCTIONALS["Potential"], mu), measures.Velocity)


PLANE = ox.Gaussian([0.0, 0.0], torch.diag(torch.tensor([2.0, 0.5]))).to_particles(
    200, torch.Generator().manual_seed(0)
)
ELSEWHERE = dict.fromkeys(
    ("CollisionFlow", "NetworkFlow"), (ox.Entropy(), ox.Landau(0.0), PLANE)
)  # where a solver works that needs more than a line
SOLVERS = {  # those without a default, and one that needs another here
    "BlockSpins": solvers.BlockSpins(Lattice(1)),
    "Features": solvers.Features(held_out=0.0),  # of a dozen particles none can be spared
    "NetworkFlow": solvers.NetworkFlow(torch.nn.Linear(2, 2), torch.Generator()),
}


def solver_classes():
    return [
        cls for _, cls in inspect.getmembers(solvers, inspect.isclass) if issubclass(cls, Solver) and cls is not Solver
    ]


def spectral(variance):
    """A Gaussian field on one site, with its covariance in modes."""
    return ox.Gaussian(torch.tensor([0.2]), measures.Spectral(torch.tensor([variance]), Lattice(1)))


@pytest.mark.parametrize("cls", solver_classes(), ids=lambda cls: cls.__name__)
def test_solvers(cls):
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    solver, worked = SOLVERS.get(cls.__name__) or cls(), 0
    distance = ox.MMD(ox.kernels.Energy(), ox.Gaussian([0.0], [[1.0]]))
    for functional in (*FUNCTIONALS.values(), distance, ox.KL(spectral(0.8))):
        F = functional.at(1.0)
        for metric in (ox.Wasserstein(), ox.Entropic(0.2), ox.Entropic(0.2, "debiased")):
            for mu in (*MEASURES.values(), spectral(1.3)):
                reason = solver.supports(F, metric, mu)
                assert reason is None or (isinstance(reason, str) and len(reason) > 10)
                if reason is None and worked < 3:
                    check_prox(solver, F, metric, mu)
                    worked += 1
                elif reason is not None:
                    with pytest.raises(TypeError, match=cls.__name__):
                        ox.Backward(F, metric, solver)(mu, 0.0, 0.05)
    if cls.__name__ in ELSEWHERE:
        check_prox(solver, *ELSEWHERE[cls.__name__])
        worked += 1
    assert worked > 0


def check_prox(solver, F, metric, mu):
    out = solver(F, metric, mu, 0.05)
    stats = out.stats
    assert type(out.mu) is type(mu) and isinstance(stats, solvers.Stats)
    for value in (stats.converged, stats.iterations, stats.residual, stats.objective, stats.distance2):
        assert value.shape == mu.batch
    assert stats.converged.all() and stats.converged.dtype == torch.bool
    if isinstance(metric, ox.Wasserstein):
        assert stats.distance2 >= -1e-12
        before = F(mu) if not isinstance(mu, ox.Particles) or F is not None else None
        assert stats.objective <= before + 1e-8
        assert stats.objective.item() == pytest.approx((F(out.mu) + stats.distance2 / 0.1).item(), rel=1e-6, abs=1e-8)


def test_choose_lists_every_solver_when_none_fits():
    with pytest.raises(TypeError) as caught:
        solvers.choose(ox.Entropy(), ox.Wasserstein(), MEASURES["Particles"])
    for cls in ("Bures", "Quantile", "Scaling", "Convex", "Descent"):
        assert cls in str(caught.value)
    text = solvers.explain(FUNCTIONALS["KL"], ox.Wasserstein(), MEASURES["Gaussian"])
    assert "Bures: chosen" in text and "Quantile: " in text


def test_public_names_are_importable():
    for package in (ox, measures, functionals, metrics, solvers):
        for name in package.__all__:
            assert hasattr(package, name), name
