"""Which solver is chosen, and what is said when there is none: what would work first, then every solver's reason."""

from __future__ import annotations

import pytest
import torch

from otprox import Entropic, Gaussian, Grid, Particles, Wasserstein
from otprox.functionals import Blob, Entropy, Interaction, Potential
from otprox.kernels import RBF
from otprox.metrics import Landau
from otprox.solvers import Kantorovich, choose, explain
from otprox.solvers.advice import suggestions
from otprox.solvers.choose import ORDER

CELLS = Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).to_density(Grid((-6.0, -6.0), (6.0, 6.0), (20, 20)))
POINTS = Particles(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))
W2 = Wasserstein()
SKEW = Wasserstein(torch.tensor([[1.0, 0.3], [0.3, 1.0]]))


def bowl(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1) / 2


def refusal(F, metric, mu) -> list[str]:
    with pytest.raises(TypeError, match="no solver for this implicit step") as caught:
        choose(F, metric, mu)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(
    ("F", "metric", "mu", "ways"),
    [
        (
            Entropy() + Blob(0.3),
            W2,
            CELLS,
            [],
        ),
        (
            Potential(bowl) + Entropy(),
            Entropic(0.1, base=SKEW),
            CELLS,
            ["principal axes of Q, where it is diagonal (torch.linalg.eigh, or C.principal()), by Scaling"],
        ),
        (
            Entropy(),
            W2,
            POINTS,
            [
                "Blob(width) instead of Entropy, by Descent",
                "a Density on a Grid, by Kantorovich",
                "solver=GaussianMap(), which moves them by affine maps",
                "no implicit step, Heat(1, generator=rng)",
            ],
        ),
        (
            2 * Entropy() + Potential(bowl),
            W2,
            POINTS,
            ["no implicit step, Forward(Potential) >> Heat(2, generator=rng)"],
        ),
        (
            Blob(0.3),
            W2,
            CELLS,
            ["Particles, by Descent"],
        ),
    ],
    ids=["nothing", "axes", "entropy", "langevin", "blob"],
)
def test_what_would_work_comes_first(F, metric, mu, ways):
    lines = refusal(F, metric, mu)
    end = next(i for i, line in enumerate(lines) if line.startswith("Why not"))
    for way in ways:
        assert any(way in line for line in lines[1:end]), lines
    assert (lines[1] == "What would work:") == bool(ways)
    reasons = [line.split(":")[0].strip() for line in lines[end + 1 :]]
    assert sorted(reasons) == sorted(type(solver).__name__ for solver in ORDER)


def test_solvers_that_fit_the_measure_and_the_metric_give_their_reasons_first():
    lines = refusal(Blob(0.3), W2, CELLS)
    reasons = lines[lines.index("Why not, those that fit the measure and the metric first:") + 1 :]
    names = [line.split(":")[0].strip() for line in reasons]
    assert max(names.index("Kantorovich"), names.index("Dynamic")) < min(names.index("Bures"), names.index("Descent"))


def test_a_suggested_splitting_has_a_solver_for_its_rest():
    def find(F, metric, mu):
        return None if any(isinstance(f, Interaction) for _, f in F.terms) else Kantorovich()

    ways = suggestions(Entropy() + 2 * Interaction(RBF(1.0)), W2, CELLS, find)
    assert ways == ["a splitting, Forward(2·Interaction) >> Backward(Entropy), by Kantorovich"]
    assert suggestions(Interaction(RBF(1.0)), W2, CELLS, find) == []


def test_a_choice_is_explained_in_order():
    assert isinstance(choose(Entropy(), W2, CELLS), Kantorovich)
    lines = explain(Entropy(), W2, CELLS).split("\n")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [type(solver).__name__ for solver in ORDER]


def test_no_metric_is_suggested_where_it_does_not_act():
    line = Particles(torch.linspace(-1.0, 1.0, 9)[:, None])
    with pytest.raises(TypeError, match=r"Descent: Landau needs d ≥ 2 and gamma ≥ −d; got d = 1") as refused:
        choose(Blob(0.5), Landau(0.0), line)
    assert "Quantiles.of(mu, n), by" not in str(refused.value)
