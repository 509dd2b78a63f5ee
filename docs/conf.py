"""Sphinx configuration: API pages from docstrings, the gallery from ../tutorials, doctests from the guides."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from importlib.metadata import version as installed_version

project = "otprox"
author = "The otprox developers"
copyright = "2026, The otprox developers"
release = version = installed_version("otprox")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "sg_execution_times.rst"]
default_role = "code"
smartquotes = False  # docstrings quote values, such as on_failure="raise"
suppress_warnings = ["config.cache"]  # the gallery's configuration cannot be pickled

html_theme = "pydata_sphinx_theme"
html_title = "otprox"
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"], "show_prev_next": False}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True

# The `>>>` examples of docstrings run with the tests; here run those of the guides.
doctest_test_doctest_blocks = ""
doctest_global_setup = "import torch; import otprox as ox"

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "matplotlib_animations": True,
    "show_memory": False,
    "min_reported_time": 5,
    "doc_module": ("otprox",),
    "backreferences_dir": None,
}

CODE = re.compile(r"(``[^`]*``|:\w+:`[^`]*`|`[^`]*`)")


def _plain(line: str) -> str:
    """Keep code spans; elsewhere `*batch` is a shape and |z| a norm, not markup."""
    parts = CODE.split(line)
    parts[::2] = [re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", re.sub(r"([*|])", r"\\\1", part)) for part in parts[::2]]
    return "".join(parts)


def _process_docstring(app, what, name, obj, options, lines: list[str]) -> None:
    in_example = in_directive = False
    for i, line in enumerate(lines):
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        in_directive = line.startswith(".. ") or (in_directive and (not line.strip() or line.startswith(" ")))
        if not (in_example or in_directive):
            lines[i] = _plain(line)


def _process_signature(app, what, name, obj, options, signature: str | None, returns: str | None):
    """A default that a dataclass makes afresh is shown as a call, Wasserstein(), not as <factory>."""
    if what == "class" and is_dataclass(obj) and signature and "<factory>" in signature:
        for f in fields(obj):
            if f.init and f.default_factory is not MISSING:
                call = {"list": "[]", "dict": "{}"}.get(f.default_factory.__name__, f"{f.default_factory.__name__}()")
                signature = signature.replace("<factory>", call, 1)
        signature = re.sub(r", _\w+: [^=]* = \[\]", "", signature)  # private fields
    return signature, returns


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _process_docstring)
    app.connect("autodoc-process-signature", _process_signature)
