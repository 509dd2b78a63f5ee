"""The main job of `otprox demo`: the paper's experiment, a real posterior and a double well."""

from __future__ import annotations

import time
from pathlib import Path

from .double_well import run as double_well
from .posterior import run as posterior
from .proximal_gradient import run as proximal_gradient
from .report import say

_PARTS = {"gradient": proximal_gradient, "posterior": posterior, "well": double_well}


def run(folder: Path, only: str | None = None, progress: bool = True) -> None:
    """Print the tables of one part, or of all, and save the figures to `folder`."""
    start = time.perf_counter()
    for name, part in _PARTS.items():
        if only in (None, name):
            part(folder, progress)
    say(f"\ndone in {time.perf_counter() - start:.0f} s")
