"""Tables on the terminal (rich when it is installed, plain text otherwise) and figures on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def heading(text: str) -> None:
    """A line that starts a section."""
    print(f"\n== {text} ==", flush=True)


def say(text: str) -> None:
    """A sentence."""
    print(text, flush=True)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table of strings and numbers."""
    cells = [[_show(value) for value in row] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        _plain(title, columns, cells)
        return
    shown = Table(title=title, title_justify="left", header_style="bold")
    for k, name in enumerate(columns):
        shown.add_column(name, justify="left" if k == 0 else "right", no_wrap=k > 0)
    for row in cells:
        shown.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 140  # a pipe has no width of its own
    console.print(shown)


def save(figure: Any, folder: Path, name: str) -> None:
    """Write a figure and say where."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=120)
    plt.close(figure)
    say(f"figure: {folder / name}")


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[k]) for row in [columns, *cells]) for k in range(len(columns))]
    print(title)
    for row in [columns, ["-" * w for w in widths], *cells]:
        print(
            "  ".join(
                text.ljust(w) if k == 0 else text.rjust(w) for k, (text, w) in enumerate(zip(row, widths, strict=True))
            )
        )
