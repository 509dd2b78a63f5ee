"""The command line, as a user calls it."""

import importlib
import json
import sys

import pytest

from otprox import cli, verify
from otprox.demo import report
from otprox.verify import Case

double_well, posterior, proximal_gradient = (
    importlib.import_module(f"otprox.demo.{name}") for name in ("double_well", "posterior", "proximal_gradient")
)


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out and "KeOps" in out and "ready" in out


def test_doctor_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_version", lambda name: None if name in ("cvxpy", "pykeops") else "1.0")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "cvxpy         missing: pip install cvxpy" in out and "something that otprox needs is missing" in out


def test_verify_json(capsys):
    assert cli.main(["verify", "--json", "order: JKO", "bias"]) == 0
    verdicts = json.loads(capsys.readouterr().out)
    assert {v["name"] for v in verdicts} >= {"order: JKO", "bias: Langevin"}
    assert all(v["passed"] for v in verdicts)


def test_verify_fails_with_a_false_claim(capsys, monkeypatch):
    false = Case("false", "x", (0.1, 0.05), lambda h: h, order=2.0)
    monkeypatch.setattr(verify, "catalogue", lambda: [false])
    assert cli.main(["verify"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_verify_of_nothing(capsys):
    assert cli.main(["verify", "no such case"]) == 2
    assert "no such case" in capsys.readouterr().err


def test_usage():
    with pytest.raises(SystemExit) as caught:
        cli.main(["dance"])
    assert caught.value.code == 2


def test_demo_needs_its_extra(capsys, monkeypatch):
    monkeypatch.setattr(cli.util, "find_spec", lambda name: None)
    assert cli.main(["demo"]) == 1
    assert "pip install 'otprox[demo]'" in capsys.readouterr().err


@pytest.fixture
def small(monkeypatch):
    """The demo with fewer dimensions, steps and draws: the same code in seconds."""
    monkeypatch.setattr(proximal_gradient, "STEPS", {1: 20, 3: 5})
    monkeypatch.setattr(posterior, "STEPS", 80)
    monkeypatch.setattr(posterior, "DRAWS", 20_000)
    monkeypatch.setattr(double_well, "HORIZON", 1.0)


@pytest.mark.parametrize(
    ("part", "said", "figure"),
    [
        ("gradient", "closed form", "proximal_gradient.png"),
        ("posterior", "decreasing at 79 of 79 recorded steps", "posterior.png"),
        ("well", "exact", "double_well.png"),
    ],
)
@pytest.mark.usefixtures("small")
def test_demo_part(tmp_path, capsys, part, said, figure):
    assert cli.main(["demo", "--only", part, "--out", str(tmp_path), "--quiet"]) == 0
    assert said in capsys.readouterr().out
    assert (tmp_path / figure).stat().st_size > 10_000


def test_tables_without_rich(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    report.table("title", ["name", "value"], [["pi", 3.14159], ["e", "2.718"]])
    assert capsys.readouterr().out.splitlines() == ["title", "name  value", "----  -----", "pi    3.142", "e     2.718"]
