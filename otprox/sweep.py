"""A function at every point of a grid of parameters: in parallel, with a progress bar, resumable, errors kept apart."""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import storage

Point = dict[str, Any]
Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Table:
    """What a sweep found: `table[name]` is (*shape, …), with one leading axis a parameter, in the order of `axes`.

    NaN stands where a point failed, with its message in `errors` under the point's name, such as "m=0.5, K=1.0", or was
    not reached; `done` (*shape) says which points have values.
    """

    axes: dict[str, tuple[Any, ...]]
    columns: dict[str, Tensor]
    done: Tensor
    errors: dict[str, str]

    def __getitem__(self, name: str) -> Tensor:
        if name in self.columns:
            return self.columns[name]
        if name not in self.axes:
            raise KeyError(f"no column {name!r}; there are {[*self.axes, *self.columns]}")
        shape = [-1 if other == name else 1 for other in self.axes]
        return torch.tensor(self.axes[name], dtype=torch.float64).reshape(shape).expand(self.done.shape)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one .npz file, without pickle."""
        storage.save(path, {f: getattr(self, f) for f in ("axes", "columns", "done", "errors")})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Table:
        """Read what `save` wrote."""
        return cls(**storage.load(path))

    def to_xarray(self) -> Any:
        """An xarray.Dataset with a coordinate a parameter; needs xarray."""
        try:
            import xarray
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Table.to_xarray needs xarray: pip install xarray") from error
        own = len(self.axes)
        data = {
            name: ([*self.axes, *(f"{name}_{i}" for i in range(values.ndim - own))], values.numpy())
            for name, values in self.columns.items()
        }
        return xarray.Dataset(data, coords={name: list(values) for name, values in self.axes.items()})


def sweep(
    f: Callable[..., Any],
    axes: Mapping[str, Iterable[Any]],
    *,
    path: str | os.PathLike[str] | None = None,
    workers: int = 1,
    progress: bool = False,
    seed: int | None = None,
) -> Table:
    """f(**point) at every point of the product of `axes`, in `workers` processes (−1: one a core), by joblib.

    f returns a number, or a dictionary of numbers and tensors with the same names and shapes at every point; they are
    kept in float64. With `seed`, f is also given `seed=` an integer that depends on `seed` and the point only, so that
    every point is reproducible alone: `torch.Generator().manual_seed(seed)`.

    With `path`, what is done is written to that file (.npz, atomically, at most once a second and at the end), and a
    sweep that finds it computes only the points that it lacks, of these or larger axes; a file of another f or seed is
    refused. A point that raises is reported in `errors` and in a warning, costs no other point anything, and is tried
    again next time; when all raise it is an error. Ctrl-C ends the sweep and returns what there is, with a warning.

    >>> table = sweep(lambda a, b: {"sum": a + b, "product": a * b}, {"a": [1, 2], "b": [10, 20, 30]})
    >>> table["product"]
    tensor([[10., 20., 30.],
            [20., 40., 60.]], dtype=torch.float64)
    """
    grid = _checked_axes(f, axes, workers)
    names = {_name(point): point for point in _points(grid)}
    book = _Book.open(path, storage.fingerprint((_parts(f), seed)))
    todo = [(name, _seeded(point, name, seed)) for name, point in names.items() if name not in book.found]
    try:
        for name, outcome in _bar(_run(f, todo, workers), len(names) - len(todo), len(names), progress):
            book.keep(name, outcome)
    except KeyboardInterrupt:
        warnings.warn(f"interrupted; {len(book.found)} of {len(names)} points are done", stacklevel=2)
    finally:
        book.write()
    failed = {name: book.errors[name] for name in names if name in book.errors}
    if failed:
        name, message = next(iter(failed.items()))
        if len(failed) == len(names):
            raise RuntimeError(f"every point failed; at {name}: {message}")
        warnings.warn(f"{len(failed)} of {len(names)} points failed; at {name}: {message}", stacklevel=2)
    return _table(grid, names, book.found, failed)


class _Book:
    """The mutable part of a sweep: what was found so far, and its file."""

    def __init__(self, path: str | os.PathLike[str] | None, run: str, found: dict[str, Values]) -> None:
        self.path, self.run, self.found = path, run, found
        self.errors: dict[str, str] = {}
        self.written = time.monotonic()

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, run: str) -> _Book:
        if path is None or not os.path.exists(path):
            return cls(path, run, {})
        saved = storage.load(path)
        if saved.get("run") != run:
            raise ValueError(f"{path} belongs to another sweep (another function or seed); delete it, or give another")
        rows = ({k: v[i] for k, v in saved["columns"].items()} for i in range(len(saved["names"])))
        return cls(path, run, dict(zip(saved["names"], rows, strict=True)))

    def keep(self, name: str, outcome: Values | str) -> None:
        """Take in what a point gave, values or the message of an error."""
        first = next(iter(self.found.values()), outcome)
        if isinstance(outcome, str):
            self.errors[name] = outcome
        elif _layout(outcome) != _layout(first):  # type: ignore[arg-type]
            self.errors[name] = f"gave {_layout(outcome)}, and other points {_layout(first)}"  # type: ignore[arg-type]
        else:
            self.found[name] = outcome
        if time.monotonic() - self.written > 1:
            self.write()

    def write(self) -> None:
        if self.path is not None and self.found:
            rows = list(self.found.values())
            columns = {k: torch.stack([row[k] for row in rows]) for k in rows[0]}
            storage.save(self.path, {"run": self.run, "names": tuple(self.found), "columns": columns})
        self.written = time.monotonic()


def _run(f: Callable[..., Any], todo: Sequence[tuple[str, Point]], workers: int) -> Iterator[tuple[str, Values | str]]:
    from joblib import Parallel, delayed

    run, dtype = Parallel(n_jobs=workers, return_as="generator_unordered"), torch.get_default_dtype()
    results: Iterator[tuple[str, Values | str]] = run(delayed(_attempt)(f, name, point, dtype) for name, point in todo)
    return results


def _attempt(f: Callable[..., Any], name: str, point: Point, dtype: torch.dtype) -> tuple[str, Values | str]:
    torch.set_default_dtype(dtype)  # that of the caller, in a process of its own
    try:
        result = f(**point)
        values = result if isinstance(result, Mapping) else {"value": result}
        return name, {k: torch.as_tensor(v, dtype=torch.float64).detach().cpu() for k, v in values.items()}
    except Exception as error:
        return name, f"{type(error).__name__}: {error}"


def _checked_axes(f: Callable[..., Any], axes: Mapping[str, Iterable[Any]], workers: int) -> dict[str, tuple[Any, ...]]:
    if not callable(f):
        raise TypeError(f"sweep needs a function of the parameters, not a {type(f).__name__}")
    if workers == 0:
        raise ValueError("workers must be a positive number of processes, or -1 for one a core, not 0")
    grid = {}
    for name, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError(f"axis {name!r} needs a sequence of values, not {values!r}")
        grid[name] = tuple(v.item() if hasattr(v, "item") else v for v in values)
        if not grid[name] or len(set(grid[name])) < len(grid[name]):
            raise ValueError(f"axis {name!r} needs values, each once; got {grid[name]}")
    if not grid:
        raise ValueError("sweep needs at least one axis, such as {'K': [0.5, 1.0]}")
    return grid


def _points(grid: dict[str, tuple[Any, ...]]) -> Iterator[Point]:
    return (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))


def _name(point: Point) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in point.items())


def _seeded(point: Point, name: str, seed: int | None) -> Point:
    if seed is None:
        return point
    digest = hashlib.sha256(f"{seed}: {name}".encode()).digest()
    return {**point, "seed": int.from_bytes(digest[:7], "big")}


def _parts(f: Callable[..., Any]) -> Any:
    """f, with what a partial is made of."""
    return (f.func, f.args, tuple(sorted(f.keywords.items()))) if isinstance(f, partial) else f


def _layout(values: Values) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in values.items()}


def _bar(results: Iterable[Any], initial: int, total: int, progress: bool) -> Iterable[Any]:
    if not progress:
        return results
    from tqdm.auto import tqdm

    return tqdm(results, initial=initial, total=total, unit="point")


def _table(
    grid: dict[str, tuple[Any, ...]], names: Mapping[str, Point], found: dict[str, Values], errors: dict[str, str]
) -> Table:
    shape = tuple(len(values) for values in grid.values())
    done = torch.tensor([name in found for name in names]).reshape(shape)
    example = next(iter(found.values()), {})
    columns = {}
    for key, value in example.items():
        blank = torch.full_like(value, math.nan)
        rows = torch.stack([found[name][key] if name in found else blank for name in names])
        columns[key] = rows.reshape(*shape, *value.shape)
    return Table(grid, columns, done, errors)
