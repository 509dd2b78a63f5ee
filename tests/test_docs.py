"""Every public name of otprox is documented: it has a docstring and stands on an API page."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import otprox

API = Path(__file__).resolve().parents[1] / "docs" / "api"
PAGES = {
    module: page.stem
    for page in API.glob("*.rst")
    for module in re.findall(r"^\.\. automodule:: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
}


def public(module: str) -> dict[str, object]:
    """What a page shows: `__all__`, or else what the module itself defines."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    if names is None:
        names = [n for n, v in vars(loaded).items() if not n.startswith("_") and getattr(v, "__module__", 0) == module]
    return {name: getattr(loaded, name) for name in names}


def needs_docstring(value: object) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


@pytest.mark.parametrize("module", sorted(PAGES))
def test_what_a_page_shows_has_docstrings(module: str):
    assert importlib.import_module(module).__doc__
    assert public(module), f"{module} shows nothing"
    assert [name for name, value in public(module).items() if needs_docstring(value) and not value.__doc__] == []


def test_every_name_at_the_top_level_is_on_a_page():
    shown = {id(value) for module in PAGES for value in public(module).values()}
    missing = [n for n in otprox.__all__ if needs_docstring(v := getattr(otprox, n)) and id(v) not in shown]
    assert missing == []


def test_every_module_at_the_top_level_is_on_a_page():
    modules = {getattr(otprox, n).__name__ for n in otprox.__all__ if inspect.ismodule(getattr(otprox, n))}
    assert {m for m in modules if not any(page == m or page.startswith(m + ".") for page in PAGES)} == set()


def test_pages_are_in_the_table_of_contents():
    contents = (API / "index.rst").read_text(encoding="utf-8").split()
    assert set(PAGES.values()) <= set(contents)
