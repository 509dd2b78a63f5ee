import math
import warnings

import pytest
import torch

import otprox as ox
from otprox.exact.landau import BKW
from otprox.measures.base import jacobian
from otprox.scores import Fit, GaussianFit, Network, Perceptron, Training
from otprox.scores.divergence import divergence, signs
from otprox.solvers import ConvergenceWarning

CENTRES = torch.tensor([[-1.5, 0.0], [1.5, 0.5]])
QUICK = Training(iterations=40, patience=None)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture(n: int, seed: int = 0) -> ox.Particles:
    z, chosen = torch.randn(n, 2, generator=seeded(seed)), torch.randint(2, (n,), generator=seeded(seed))
    return ox.Particles(z + CENTRES[chosen])


def mixture_score(x: torch.Tensor) -> torch.Tensor:
    gaps = CENTRES - x[..., None, :]
    return (torch.softmax(-0.5 * gaps.square().sum(-1), -1)[..., None] * gaps).sum(-2)


def error(s: torch.Tensor, exact: torch.Tensor) -> float:
    return float((s - exact).norm() / exact.norm())


def cubic(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[..., 0] ** 2 * x[..., 1], x[..., 1] ** 3 + x[..., 0]], -1)


def test_the_divergence_is_the_trace_of_the_jacobian_and_probes_estimate_it():
    x = torch.randn(5, 2, generator=seeded()).requires_grad_()
    exact = divergence(cubic(x), x)
    torch.testing.assert_close(exact, jacobian(cubic, x).diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(exact, 2 * x[:, 0] * x[:, 1] + 3 * x[:, 1] ** 2)
    count = 4000
    probes = signs(count, x, seeded(1))
    spread = (jacobian(cubic, x) + jacobian(cubic, x).mT)[:, 0, 1].abs() / math.sqrt(count)
    assert ((divergence(cubic(x), x, probes) - exact).abs() < 4 * spread).all()


@pytest.mark.parametrize("probes", [None, 3])
def test_a_linear_network_finds_the_gaussian_fit(probes: int | None):
    mu = mixture(2000 if probes else 200)  # the divergence of the off-diagonal part is off by 1/√(n·probes)
    linear = torch.nn.Linear(2, 2)
    training = Training(rate=0.03, iterations=400, patience=None, held_out=0.0)
    known = Network(linear, residual=False, probes=probes, training=training, generator=seeded()).fit(mu)
    torch.testing.assert_close(known(mu.x), GaussianFit().fit(mu)(mu.x), atol=0.15 if probes else 0.02, rtol=0)
    if probes is None:
        assert float(known.stats.held_out) == pytest.approx(-1.0, abs=1e-3)


def test_before_training_a_network_is_the_gaussian_fit():
    mu = mixture(100)
    training = Training(rate=1e-12, iterations=1, patience=None)
    known = Network(training=training, generator=seeded()).fit(mu)
    torch.testing.assert_close(known(mu.x), GaussianFit().fit(mu)(mu.x))


def test_the_error_falls_with_the_number_of_particles():
    errors = []
    for n in (300, 5000):
        mu = mixture(n)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            s = Network(generator=seeded()).fit(mu)(mu.x)
        errors.append(error(s, mixture_score(mu.x)))
        assert errors[-1] < error(GaussianFit().fit(mu)(mu.x), mixture_score(mu.x))
    assert errors[1] < 0.15 and errors[1] < 0.7 * errors[0]


def test_weights_are_those_of_repeated_particles():
    """A grid under a density as weights, all of it in each batch: the loss is a quadrature, and nothing is noise."""
    line = torch.linspace(-5, 5, 26)
    x = torch.cartesian_prod(line, line)
    log_f = torch.logsumexp(-0.5 * (x[:, None] - CENTRES).square().sum(-1), -1)
    mu = ox.Particles(x, torch.softmax(log_f, -1))
    training = Training(batch=1000, iterations=300, patience=None, held_out=0.0, rate=1e-2)
    s = Network(training=training, generator=seeded()).fit(mu)(x)
    w = mu.w[:, None].sqrt()
    assert error(w * s, w * mixture_score(x)) < 0.05


def test_the_first_fit_is_to_the_known_score_and_later_ones_start_from_the_one_before():
    mu = mixture(2000)
    network = Network(initial=mixture_score, generator=seeded())
    first = network.fit(mu)
    assert error(first(mu.x), mixture_score(mu.x)) < 0.05
    second = network.fit(mu, first.stats)
    assert second.stats.iterations < first.stats.iterations / 4
    assert torch.equal(first.stats.warm["held"], second.stats.warm["held"])
    assert error(second(mu.x), mixture_score(mu.x)) < 0.15
    assert float(second.stats.held_out) < -1  # better than the Gaussian fit, on particles that were not trained on


def test_more_or_fewer_particles_start_anew():
    network = Network(training=QUICK, generator=seeded())
    stats = network.fit(mixture(200)).stats
    assert network.fit(mixture(300), stats).stats.warm["held"].shape == (300,)


def test_the_module_given_is_not_written_and_serves_in_its_own_precision():
    module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 2)).float()
    before = [p.clone() for p in module.parameters()]
    mu = mixture(100)
    known = Network(module, training=QUICK, generator=seeded()).fit(mu)
    assert known(mu.x).dtype == torch.float64
    assert all(torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))


def flow(network: Network, steps: int = 6) -> ox.Path:
    mu = ox.Gaussian([0.0, 0.0], torch.diag(torch.tensor([0.5, 1.5]))).to_particles(200, seeded(3))
    return ox.flow(ox.Forward(ox.Entropy(score=network)), mu, [0.05 * k for k in range(steps + 1)])


def test_a_path_can_be_walked_again_and_resumes_bit_for_bit(tmp_path):
    whole = ox.record(flow(Network(training=QUICK, generator=seeded()))).final
    path = flow(Network(training=QUICK, generator=seeded()))
    for _ in range(2):
        final = [tick.after for tick in path][-1]
        assert torch.equal(final.x, whole.x) and torch.equal(final.log_density, whole.log_density)
    file, broken = tmp_path / "run.npz", flow(Network(training=QUICK, generator=seeded()))
    ox.record(broken, checkpoint=file, until=lambda tick: tick.k == 2)
    resumed = flow(Network(training=QUICK, generator=seeded(99)))  # the state of the generator comes from the file
    saved = ox.storage.load(file)
    assert isinstance(saved["stats"], Fit) and saved["steps"] == 3
    tail = resumed.resume(3, saved["mu"], saved["stats"], saved["seeds"])
    final = [tick.after for tick in tail][-1]
    assert torch.equal(final.x, whole.x) and torch.equal(final.log_density, whole.log_density)


def test_another_network_is_another_run(tmp_path):
    a, b = (Perceptron(2, 4, generator=seeded(seed)) for seed in (0, 1))
    file = tmp_path / "run.npz"
    ox.record(flow(Network(a, training=QUICK, generator=seeded()), 2), checkpoint=file)
    with pytest.raises(ValueError, match="belongs to another run"):
        ox.record(flow(Network(b, training=QUICK, generator=seeded()), 2), checkpoint=file)


def test_a_batch_trains_as_single_runs():
    both = ox.Particles(torch.stack([mixture(150).x, 2 * mixture(150, 1).x]))
    known = Network(training=QUICK, generator=seeded()).fit(both)
    again = Network(training=QUICK, generator=seeded()).fit(both, known.stats)
    assert known.stats.converged.shape == (2,) and known.stats.warm["parameters"].shape[0] == 2
    for i in range(2):
        one = ox.Particles(both.x[i])
        alone = Network(training=QUICK, generator=seeded()).fit(one)
        torch.testing.assert_close(known(both.x)[i], alone(one.x))
        twice = Network(training=QUICK, generator=seeded()).fit(one, alone.stats)
        torch.testing.assert_close(again(both.x)[i], twice(one.x))


def test_observers_leave_the_generator_where_it_was():
    generator = seeded()
    F, mu = ox.Entropy(score=Network(training=QUICK, generator=generator)), mixture(100)
    before = generator.get_state()
    assert torch.equal(F.gradient(mu), F.gradient(mu))
    assert torch.equal(generator.get_state(), before)
    assert ox.Forward(F).generators() == (generator,)


def test_in_a_sum_the_stats_are_those_of_its_terms():
    V = ox.Potential(ox.Quadratic([0.0, 0.0]))
    step = ox.Forward(V + 0.5 * ox.Entropy(score=Network(training=QUICK, generator=seeded())))
    first = step(mixture(100), 0.0, 0.1)
    none, fit = first.stats
    assert none is None and isinstance(fit, Fit)
    _, second = step(first.mu, 0.1, 0.2, first.stats).stats
    assert torch.equal(second.warm["held"], fit.warm["held"])  # it started from the one before
    tick = ox.Tick(0, 0.0, 0.1, first.mu, first.mu, first.stats)
    assert ox.observe.iterations(tick) == 40 and ox.observe.converged(tick)


@pytest.mark.parametrize(
    "make",
    [
        lambda F: ox.Adagrad(F),
        lambda F: ox.NoisyForward(F, 0.1, generator=seeded(1)),
        lambda F: ox.Midpoint(F, ox.Landau(0.0)),
    ],
    ids=["Adagrad", "NoisyForward", "Midpoint"],
)
def test_other_steps_start_from_the_step_before_too(make):
    step = make(ox.Entropy(score=Network(training=QUICK, generator=seeded())))
    first = step(mixture(200), 0.0, 0.01)
    second = step(first.mu, 0.01, 0.02, first.stats)
    a, b = (out.stats[-1] if isinstance(out.stats, tuple) else out.stats for out in (first, second))
    assert torch.equal(a.warm["held"], b.warm["held"])


def test_the_landau_equation_by_a_network_has_the_entropy_of_bkw():
    exact, side = BKW(), 40
    line = (torch.arange(side) + 0.5) * 8 / side - 4
    x = torch.cartesian_prod(line, line)
    log_f = exact.log_density(x, 0.0)
    network = Network(
        initial=lambda v: exact.score(v, 0.0), training=Training(held_out=0.0, batch=256), generator=seeded()
    )
    step = ox.Forward(ox.Entropy(score=network), ox.Landau(0.0, exact.strength))
    mu = ox.Particles(x, torch.softmax(log_f, -1), log_f)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        final = ox.record(ox.flow(step, mu, [0.1 * k for k in range(11)])).final
    assert abs(float(final.entropy()) - exact.entropy(1.0)) < 0.25 * (exact.entropy(0.0) - exact.entropy(1.0))


def test_a_diverging_training_keeps_the_best_parameters_and_says_so():
    mu = mixture(200)
    network = Network(training=Training(rate=1e3, patience=50), generator=seeded())
    with pytest.warns(ConvergenceWarning, match="the loss went from -1.* to .*best parameters before that are kept"):
        known = network.fit(mu)
    assert not known.stats.converged and torch.isfinite(known(mu.x)).all()
    assert float(known.stats.held_out) < -0.9
    assert "the loss went from" in known.stats.message


def test_running_out_of_iterations_is_said():
    with pytest.warns(ConvergenceWarning, match="still falling after 20 iterations; try more iterations"):
        Network(training=Training(iterations=20, tol=1e-9), generator=seeded()).fit(mixture(1000))


class Broken(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (self.scale * 0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (torch.nn.Linear(2, 3), r"map points \(n, d\) to vectors \(n, d\): \(\d+, 2\) gave \(\d+, 3\)"),
        (torch.nn.LSTM(2, 2), "gave tuple"),
        (torch.nn.Tanh(), "no parameters to train: Tanh"),
        (Broken(), "the loss is nan before training"),
    ],
    ids=["shape", "tuple", "empty", "nan"],
)
def test_networks_that_cannot_be_scores_are_refused(module: torch.nn.Module, message: str):
    with pytest.raises(ValueError, match=message):
        Network(module, generator=seeded()).fit(mixture(50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"module": 3.0}, "module must be a torch.nn.Module, not 3.0"),
        ({"generator": 0}, "generator must be a torch.Generator, not a int"),
        ({"probes": 0}, "probes must be at least 1, or None, not 0"),
    ],
    ids=str,
)
def test_arguments_that_make_no_network_are_refused(arguments: dict, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        Network(**({"generator": seeded()} | arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate must be positive and finite, not 0.0"),
        ({"held_out": 1.0}, r"in \[0, 1\), not 1.0"),
        ({"patience": 0}, "patience must be at least 1 look"),
    ],
    ids=str,
)
def test_options_that_make_no_training_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Training(**options)


def test_too_few_particles_to_hold_one_out_are_refused():
    with pytest.raises(ValueError, match="held_out = 0.2 of 2 particles leaves none"):
        Network(generator=seeded()).fit(ox.Particles([[0.0], [1.0]]))


def test_high_dimensions_by_probes():
    mu = ox.Gaussian(torch.zeros(8), torch.eye(8)).to_particles(400, seeded())
    known = Network(training=QUICK, generator=seeded()).fit(mu)
    assert error(known(mu.x), -mu.x) < 0.35 and float(known.stats.held_out) < -0.8


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def test_single_precision(device: str):
    mu = ox.Particles(mixture(500).x.float().to(device))
    network = Network(training=QUICK, generator=seeded())
    known = network.fit(mu)
    again = network.fit(mu, known.stats)
    assert again(mu.x).dtype == torch.float32 and again(mu.x).device.type == device
    assert error(again(mu.x).cpu(), mixture_score(mu.x.cpu())) < 0.6


def test_the_divergence_of_what_does_not_depend_on_the_points():
    x = torch.randn(5, 2).requires_grad_()
    assert torch.equal(divergence(torch.ones(5, 2), x), torch.zeros(5))
    half = torch.stack([x[:, 0] ** 2, torch.ones(5)], -1)
    torch.testing.assert_close(divergence(half, x), 2 * x[:, 0])
    bias = torch.ones(2).requires_grad_()
    assert torch.equal(divergence(bias.expand(5, 2), x), torch.zeros(5))
