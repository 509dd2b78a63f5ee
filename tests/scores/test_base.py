import pytest
import torch

import otprox as ox
from otprox import observe, scores
from otprox.exact.landau import BKW
from otprox.measures.base import jacobian


def bkw(side: int, t: float = 0.0) -> ox.Particles:
    """Nodes of a grid of spacing 8/side with the BKW density as weights and carried."""
    line = (torch.arange(side) + 0.5) * 8 / side - 4
    x = torch.cartesian_prod(line, line)
    log_f = BKW().log_density(x, t)
    return ox.Particles(x, torch.softmax(log_f, -1), log_f)


def cloud(n: int = 30, d: int = 2) -> ox.Particles:
    return ox.Particles(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))


def test_a_function_is_a_score_that_is_known():
    F = ox.Entropy(score=lambda x: -2 * x)
    mu = cloud()
    torch.testing.assert_close(F.gradient(mu), -2 * mu.x)
    torch.testing.assert_close(ox.Forward(F)(mu, 0.0, 0.1).mu.x, 1.2 * mu.x)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (scores.KDE, "not <class 'otprox.scores.kde.KDE'>"),
        (3.0, "or a function of points .* not 3.0"),
        (torch.nn.Linear(2, 2), "scores.Network\\(module, generator=...\\)"),
    ],
    ids=["class", "number", "module"],
)
def test_what_is_no_score_is_refused(score: object, message: str):
    with pytest.raises(TypeError, match=message):
        ox.Entropy(score=score)


def test_a_score_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"same shape: \(30, 2\) gave \(30,\)"):
        ox.Forward(ox.Entropy(score=lambda x: x.sum(-1)))(cloud(), 0.0, 0.1)


def test_a_score_gives_no_value():
    with pytest.raises(TypeError, match="slope of the entropy, not its value.*log_density.*Blob"):
        ox.Entropy(score=scores.KDE())(cloud())


def test_measures_with_a_density_ignore_the_score():
    mu = ox.Gaussian([1.0], [[2.0]])
    F, G = ox.Entropy(score=scores.KDE()), ox.Entropy()
    torch.testing.assert_close(F(mu), G(mu))
    torch.testing.assert_close(ox.Forward(F)(mu, 0.0, 0.1).mu.cov, ox.Forward(G)(mu, 0.0, 0.1).mu.cov)


def test_an_ornstein_uhlenbeck_flow_relaxes_and_knows_its_density():
    """Forward on V + entropy with the linear score: means and covariances of the exact flow, at first order."""
    start = ox.Gaussian([2.0, -1.0], torch.diag(torch.tensor([0.3, 2.0])))
    mu = start.to_particles(400, torch.Generator().manual_seed(0))
    step = ox.Forward(ox.Potential(ox.Quadratic([0.0, 0.0])) + ox.Entropy(score=scores.GaussianFit()))
    final = ox.record(ox.flow(step, mu, torch.linspace(0, 1, 201).tolist())).final
    decay = torch.exp(torch.tensor(-1.0))
    torch.testing.assert_close(final.mean, decay * mu.mean, atol=0, rtol=5e-3)
    torch.testing.assert_close(final.cov, decay**2 * mu.cov + (1 - decay**2) * torch.eye(2), atol=1e-2, rtol=0)
    gained = mu.entropy() - final.entropy()
    assert float(gained) == pytest.approx(float(0.5 * (torch.logdet(final.cov) - torch.logdet(mu.cov))), rel=1e-9)


def test_the_density_carried_with_the_exact_score_has_the_entropy_of_bkw():
    exact = BKW()
    F = ox.Varying(lambda t: ox.Entropy(score=lambda v: exact.score(v, t)))
    step = ox.Forward(F, ox.Landau(0.0, exact.strength))
    path = ox.flow(step, bkw(60), torch.linspace(0, 1, 51).tolist())
    run = ox.record(path, entropy=observe.energy(ox.Entropy()))
    errors = torch.tensor(
        [float(H) - exact.entropy(t) for t, H in zip(run.times.tolist(), run.series["entropy"], strict=True)]
    )
    assert errors.abs().max() < 1e-3
    gap = (run.final.log_density - exact.log_density(run.final.x, 1.0)).abs()
    assert run.final.expect(lambda _: gap) < 5e-3


def test_the_hessian_of_the_entropy_is_the_jacobian_of_the_score():
    mu = cloud()
    linear = ox.Entropy(score=scores.GaussianFit())
    torch.testing.assert_close(linear.hessian(mu), -torch.linalg.inv(mu.cov).expand(30, 2, 2))
    known = scores.KDE(0.5).fit(mu)
    F = 3.0 * ox.Entropy(score=known) + ox.Potential(ox.Quadratic([0.0, 0.0]))
    torch.testing.assert_close(F.hessian(mu), torch.eye(2) + 3 * jacobian(known, mu.x))


def test_a_jacobian_is_differentiable_when_its_points_are():
    x = torch.tensor([[0.3], [0.7]], requires_grad=True)
    J = jacobian(torch.sin, x)
    (slope,) = torch.autograd.grad(J.sum(), x)
    torch.testing.assert_close(slope, -torch.sin(x.detach()))
    torch.testing.assert_close(jacobian(lambda y: torch.ones_like(y), x), torch.zeros(2, 1, 1))
