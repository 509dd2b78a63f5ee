"""Sweeps: values in place, parallel as serial, resumed, errors apart, seeds of a point its own."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch

import otprox as ox
from otprox.sweep import Table


def area(a: float, b: float) -> dict:
    if a == 3:
        raise ValueError("three is refused")
    return {"area": a * b, "sides": torch.tensor([a, b])}


def draw(a: float, seed: int) -> float:
    return a + torch.rand((), generator=torch.Generator().manual_seed(seed)).item()


def dtype(a: float) -> float:
    return torch.ones(()).element_size()


def test_values_stand_at_their_points():
    table = ox.sweep(area, {"a": [1, 2], "b": torch.tensor([10.0, 20.0, 30.0])})
    assert table.axes == {"a": (1, 2), "b": (10.0, 20.0, 30.0)} and table.done.all() and not table.errors
    torch.testing.assert_close(table["area"], table["a"] * table["b"])
    torch.testing.assert_close(table["sides"], torch.stack([table["a"], table["b"]], -1))
    with pytest.raises(KeyError, match="no column 'c'"):
        table["c"]


def test_processes_give_what_one_gives():
    axes = {"a": [0.5, 1.5, 2.5], "b": [1.0, 2.0]}
    one, two = (ox.sweep(area, axes, workers=workers) for workers in (1, 2))
    torch.testing.assert_close(one["sides"], two["sides"], rtol=0, atol=0)
    assert ox.sweep(dtype, {"a": [1]}, workers=2)["value"].item() == 8  # the caller's default dtype


def test_an_error_loses_no_other_point():
    with pytest.warns(UserWarning, match="2 of 6 points failed; at a=3, b=1.0: ValueError: three is refused"):
        table = ox.sweep(area, {"a": [1, 3, 5], "b": [1.0, 2.0]})
    assert table.done.tolist() == [[True, True], [False, False], [True, True]]
    assert set(table.errors) == {"a=3, b=1.0", "a=3, b=2.0"}
    assert table["area"][1].isnan().all() and table["area"][2].tolist() == [5.0, 10.0]
    with pytest.raises(RuntimeError, match="every point failed"):
        ox.sweep(area, {"a": [3], "b": [1]})
    with pytest.warns(UserWarning, match=r"gave \{'value': \(2,\)\}, and other points"):
        ox.sweep(lambda a: torch.zeros(a), {"a": [1, 2]})


def test_a_sweep_resumes_and_grows(tmp_path: Path):
    calls: list[float] = []

    def slow(a: float) -> float:
        calls.append(a)
        if a == 2 and calls.count(2) == 1:
            raise OSError("once")
        return a * a

    path = tmp_path / "folder" / "sweep.npz"
    with pytest.warns(UserWarning, match="OSError: once"):
        ox.sweep(counted(slow), {"a": [1, 2, 3]}, path=path)
    table = ox.sweep(counted(slow), {"a": [4, 3, 2, 1]}, path=path)
    assert table["value"].tolist() == [16, 9, 4, 1] and calls == [1, 2, 3, 4, 2]
    with pytest.raises(ValueError, match="another sweep"):
        ox.sweep(lambda a: a, {"a": [1]}, path=path)
    with pytest.raises(ValueError, match="another sweep"):
        ox.sweep(counted(slow), {"a": [1]}, path=path, seed=1)
    path.write_bytes(b"not a file of ours")
    with pytest.raises(ValueError, match="damaged"):
        ox.sweep(counted(slow), {"a": [1]}, path=path)


class counted:
    """A function whose fingerprint does not see what it has closed over."""

    def __init__(self, f):
        self.f = f

    def __call__(self, a):
        return self.f(a)


def test_an_interrupted_sweep_returns_and_keeps_what_there_is(tmp_path: Path):
    def stopping(a: float) -> float:
        if a == 3:
            raise KeyboardInterrupt
        return a

    with pytest.warns(UserWarning, match="interrupted; 2 of 4 points are done"):
        table = ox.sweep(stopping, {"a": [1, 2, 3, 4]}, path=tmp_path / "s.npz")
    assert table["value"][:2].tolist() == [1, 2] and table.done.tolist() == [True, True, False, False]
    assert ox.sweep(stopping, {"a": [1, 2]}, path=tmp_path / "s.npz").done.all()


def test_the_seed_of_a_point_is_its_own():
    whole = ox.sweep(draw, {"a": [1, 2, 3]}, seed=7, workers=2)["value"]
    assert ox.sweep(draw, {"a": [3]}, seed=7)["value"][0] == whole[2]
    assert ox.sweep(draw, {"a": [3]}, seed=8)["value"][0] != whole[2]
    assert len(set((whole - whole.floor()).tolist())) == 3


def test_partials_are_told_apart(tmp_path: Path):
    path = tmp_path / "s.npz"
    ox.sweep(partial(area, b=2.0), {"a": [1]}, path=path)
    with pytest.raises(ValueError, match="another sweep"):
        ox.sweep(partial(area, b=3.0), {"a": [1]}, path=path)


def test_tables_are_kept(tmp_path: Path):
    table = ox.sweep(area, {"a": [1, 2], "b": [1.0]})
    table.save(tmp_path / "t.npz")
    back = Table.load(tmp_path / "t.npz")
    assert back.axes == table.axes and torch.equal(back["sides"], table["sides"]) and torch.equal(back.done, table.done)
    data = table.to_xarray()
    assert data["area"].sel(a=2, b=1.0).item() == 2.0 and data["sides"].shape == (2, 1, 2)


def test_progress_is_shown(capsys: pytest.CaptureFixture):
    ox.sweep(draw, {"a": [1, 2]}, seed=0, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_what_is_refused():
    with pytest.raises(TypeError, match="needs a function"):
        ox.sweep(3, {"a": [1]})
    with pytest.raises(ValueError, match="at least one axis"):
        ox.sweep(draw, {})
    with pytest.raises(ValueError, match="axis 'a' needs values, each once"):
        ox.sweep(draw, {"a": [1, 1]})
    with pytest.raises(ValueError, match="axis 'a' needs values"):
        ox.sweep(draw, {"a": []})
    with pytest.raises(TypeError, match="axis 'a' needs a sequence of values, not 2"):
        ox.sweep(draw, {"a": 2})
    with pytest.raises(ValueError, match="workers"):
        ox.sweep(draw, {"a": [1]}, workers=0)
    assert math.isfinite(ox.sweep(draw, {"a": [1]}, seed=0)["value"].item())
