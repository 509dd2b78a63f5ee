"""Files: round trips, atomic writes, and what is refused."""

import numpy as np
import pytest
import torch

import otprox as ox
from otprox import storage
from otprox.solvers import Stats


def test_round_trip(tmp_path):
    stats = Stats(*(torch.ones(2) for _ in range(5)), message="m", warm={"u": torch.arange(3.0)}, map=lambda x: x)
    value = {
        "a": torch.arange(4, dtype=torch.float32),
        "b": (1, 2.5, None, "x", True, [torch.tensor(7)]),
        "gaussian": ox.Gaussian([0.0], [[2.0]], quadrature=ox.GaussHermite(5)),
        "cloud": ox.Particles(torch.ones(3, 2), domain=ox.Box(0.0, 2.0)),
        "stats": (None, stats),
    }
    storage.save(tmp_path / "deep" / "file.npz", value)
    back = storage.load(tmp_path / "deep" / "file.npz")
    assert back["a"].dtype == torch.float32 and torch.equal(back["a"], value["a"])
    assert back["b"][:5] == (1, 2.5, None, "x", True) and back["b"][5][0].item() == 7
    assert back["gaussian"].quadrature == ox.GaussHermite(5)
    torch.testing.assert_close(back["gaussian"].cov, value["gaussian"].cov)
    assert back["cloud"].domain == ox.Box(0.0, 2.0)
    assert back["stats"][1].map is None and torch.equal(back["stats"][1].warm["u"], torch.arange(3.0))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "file.npz"
    storage.save(file, {"a": 1})
    with pytest.raises(TypeError, match="cannot save a set"):
        storage.save(file, {"a": {1, 2}})
    assert storage.load(file) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["file.npz"]


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError):
        storage.load(tmp_path / "nothing.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="not written by otprox"):
        storage.load(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", structure=np.array([object()]))
    with pytest.raises(ValueError, match="not written by otprox"):
        storage.load(tmp_path / "pickled.npz")
    np.savez(tmp_path / "stranger.npz", structure=np.array('{"type": "Popen", "fields": {}}'))
    with pytest.raises(ValueError, match="Popen"):
        storage.load(tmp_path / "stranger.npz")


def test_fingerprints_see_what_changes_a_run():
    def quartic(c):
        return lambda x: c * (x**4).sum(-1)

    def step(V=quartic(1.0), Q=None, solver=None):
        return ox.Forward(ox.Potential(V), ox.Wasserstein(Q)) >> ox.Backward(ox.Entropy(), solver=solver)

    same = storage.fingerprint(step())
    assert storage.fingerprint(step(quartic(1.0))) == same
    others = [
        step(quartic(2.0)),
        step(lambda x: (x**2).sum(-1)),
        step(ox.Quadratic([0.0])),
        step(Q=torch.eye(1)),
        step(solver=ox.solvers.GaussianMap()),
        step(solver=ox.solvers.Bures(tolerance=1e-9)),
        step() >> ox.Heat(),
        step() >> ox.Heat(2.0),
    ]
    prints = [storage.fingerprint(other) for other in others]
    assert same not in prints and len(set(prints)) == len(prints)
