"""Nested values of tensors, numbers and dataclasses in one .npz file: written atomically, read without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import measures
from .adaptive import Control
from .domains import Domain
from .lattice import Lattice
from .multistep import Lagged
from .scores import Fit
from .solvers import Stats


def save(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` to `path`; a reader sees the old file or the new one, never half of it."""
    arrays: dict[str, np.ndarray] = {}
    structure = _encode(value, arrays)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, structure=np.array(json.dumps(structure)), **arrays)  # type: ignore[arg-type]
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str], device: torch.device | None = None) -> Any:
    """Read what `save` wrote, tensors on `device`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            structure = json.loads(str(archive["structure"]))
            return _decode(structure, archive, device)
    except (KeyError, ValueError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} was not written by otprox, or is damaged: {error}") from error


def fingerprint(value: Any) -> str:
    """A hash of nested values: tensors and numbers by content, dataclasses by type and fields, functions by their code.

    Generators, and fields whose name starts with an underscore, do not enter.
    """
    digest = hashlib.sha256()
    _digest(value, digest)
    return digest.hexdigest()


def _digest(value: Any, digest: Any) -> None:
    digest.update(type(value).__name__.encode())
    if isinstance(value, Tensor):
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            if not f.name.startswith("_"):
                digest.update(f.name.encode())
                _digest(getattr(value, f.name), digest)
    elif isinstance(value, tuple | list):
        for part in value:
            _digest(part, digest)
    elif isinstance(value, FunctionType):
        _digest_function(value, digest)
    elif isinstance(value, torch.nn.Module):
        _digest(tuple(value.state_dict().items()), digest)
    elif value is None or isinstance(value, bool | int | float | str):
        digest.update(repr(value).encode())


def _digest_function(f: FunctionType, digest: Any) -> None:
    digest.update(f"{f.__module__}.{f.__qualname__}".encode() + f.__code__.co_code)
    constants = tuple(c for c in f.__code__.co_consts if isinstance(c, bool | int | float | str))
    _digest((constants, f.__defaults__ or (), tuple(cell.cell_contents for cell in f.__closure__ or ())), digest)


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, Tensor):
        key = f"t{len(arrays)}"
        once = value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in value.stride())]
        arrays[key] = once.detach().cpu().numpy()
        return {"tensor": key, "shape": list(value.shape)}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        kept = {name: _encode(part, arrays) for name, part in parts.items() if not callable(part) or is_dataclass(part)}
        return {"type": type(value).__name__, "fields": kept}
    if isinstance(value, tuple | list):
        return {"tuple": [_encode(part, arrays) for part in value]}
    if isinstance(value, dict):
        return {"dict": {key: _encode(part, arrays) for key, part in value.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot save a {type(value).__name__}")


def _decode(node: Any, archive: Any, device: torch.device | None) -> Any:
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return torch.from_numpy(archive[node["tensor"]]).to(device).expand(node["shape"])  # sums round as they did
    if "tuple" in node:
        return tuple(_decode(part, archive, device) for part in node["tuple"])
    if "dict" in node:
        return {key: _decode(part, archive, device) for key, part in node["dict"].items()}
    return _rebuild(node, archive, device)


def _rebuild(node: dict[str, Any], archive: Any, device: torch.device | None) -> Any:
    known = {cls.__name__: cls for cls in _storable()}
    if node["type"] not in known:
        raise ValueError(f"it holds a {node['type']}, which is not defined here; import its module first")
    cls = known[node["type"]]
    value: Any = object.__new__(cls)
    for f in fields(cls):
        part = node["fields"].get(f.name)
        object.__setattr__(value, f.name, _decode(part, archive, device))
    return value


def _storable() -> Iterator[type]:
    yield from (Stats, measures.Grid, measures.GaussHermite, measures.Samples, measures.Antithetic)
    yield from (measures.Spectral, Lattice, Lagged, Control, Fit)
    for base in (measures.Measure, Domain):
        yield from base.__subclasses__()
