"""Run-time checks of the shapes that otprox annotates with jaxtyping. Only the tests install them.

Other type hints are left alone: what otprox itself says of bad input is tested as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

MARKS = ("Float[", "Int[", "Bool[", "Shaped[", "Num[", "Inexact[")


def is_shape(hint: object) -> bool:
    return any(mark in str(hint) for mark in MARKS)


def check(function: Callable) -> Callable:
    """The type checker of the import hook: beartype on the annotations that have shapes."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if is_shape(hint)}
    return beartype(function)


def install() -> None:
    """Check functions as they are imported, and the fields of dataclasses whenever an instance is made."""
    jaxtyping.install_import_hook("otprox", "shapes.check")
    importlib.import_module("otprox")
    for name, module in list(sys.modules.items()):
        if name.startswith("otprox."):
            for value in list(vars(module).values()):
                if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == name:
                    check_fields(value)


def check_fields(cls: type) -> None:
    """Make `cls` refuse fields that do not have the shapes of their annotations, with one meaning for each name."""
    fields = [field for field in dataclasses.fields(cls) if is_shape(field.type) or "Matri" in str(field.type)]
    if not fields:
        return
    hints = typing.get_type_hints(cls)
    names = [field.name for field in fields if is_shape(hints[field.name])]

    def verify(self: Any) -> None:
        with jaxtyping.jaxtyped("context"):
            for name in names:
                value = getattr(self, name)
                assert isinstance(value, hints[name]), f"{cls.__name__}.{name}: {value!r} is not {hints[name]}"

    def verified(method: Callable, of_result: bool) -> Callable:
        @functools.wraps(method)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(self, *args, **kwargs)
            verify(result if of_result else self)
            return result

        return wrapper

    cls.__init__ = verified(cls.__init__, of_result=False)
    if hasattr(cls, "with_state"):
        cls.with_state = verified(cls.with_state, of_result=True)
