"""The house: imports run one way, there are no cycles, and `import otprox` loads no heavy library but torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "otprox"
ORDER = """
    domains kernels pairwise lattice measures scores functionals metrics solvers steps multistep adaptive adagrad
    conservative integrate noisy pseudospectral storage sweep flow observe chaos schemes exact polchinski verify plot
    demo cli
""".split()
HEAVY = "scipy cvxpy clarabel ot matplotlib tqdm rich sklearn xarray pandas pykeops joblib torchdiffeq".split()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(name: str, source: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """The modules of `known` that a module imports anywhere in its text, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, *base.split(".")] if base else parts)
            for alias in node.names:
                target = f"{base}.{alias.name}"
                yield from (t for t in (target if target in known else base,) if t in known)


def graph() -> dict[str, set[str]]:
    known = set(MODULES)
    return {
        name: set(imported(name, path.read_text(encoding="utf-8"), path.name == "__init__.py", known)) - {name}
        for name, path in MODULES.items()
    }


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Imports against the order; the root `__init__` and `__main__` stand above all of it."""
    rank = {part: i for i, part in enumerate(ORDER)}
    found = []
    for name, targets in edges.items():
        part = name.split(".")[1:2]
        if not part or part == ["__main__"]:
            continue
        for target in targets:
            other = target.split(".")[1:2]
            if other and rank[other[0]] > rank[part[0]]:
                found.append(f"{name} imports {target}")
    return found


def test_every_module_has_a_place_in_the_order():
    parts = {name.split(".")[1] for name in MODULES if "." in name} - {"__main__"}
    assert parts <= set(ORDER), f"no place in the order: {sorted(parts - set(ORDER))}"


def test_imports_run_one_way():
    assert upward(graph()) == []


def test_there_is_no_cycle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("package", ["measures", "functionals", "metrics", "solvers"])
def test_a_base_knows_no_family(package: str):
    """A base imports at most siblings that import none themselves."""
    siblings = {t for t in graph()[f"otprox.{package}.base"] if t.startswith(f"otprox.{package}")}
    assert {t for s in siblings for t in graph()[s] if t.startswith(f"otprox.{package}")} == set()


def test_no_module_is_named_utils():
    assert [name for name in MODULES if name.split(".")[-1].strip("_") in ("utils", "util", "helpers", "misc")] == []


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("from . import Gaussian", "otprox.measures"),
        ("from .base import Measure", "otprox.measures.base"),
        ("from ..steps import Forward", "otprox.steps"),
        ("from .. import steps", "otprox.steps"),
        ("import otprox.steps", "otprox.steps"),
        ("def f():\n    from otprox.steps import Forward", "otprox.steps"),
    ],
)
def test_the_reader_of_imports_sees_every_form(line: str, target: str):
    known = {"otprox", "otprox.steps", "otprox.measures", "otprox.measures.base"}
    assert set(imported("otprox.measures.gaussian", line, False, known)) == {target}


def test_the_order_test_can_fail():
    assert upward({"otprox.measures.gaussian": {"otprox.steps"}}) == ["otprox.measures.gaussian imports otprox.steps"]


def test_importing_otprox_loads_no_heavy_library():
    code = (
        "import sys, torch; before = set(sys.modules); import otprox; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "otprox" in loaded
    assert loaded.isdisjoint(HEAVY), f"import otprox loads {sorted(loaded & set(HEAVY))}"
