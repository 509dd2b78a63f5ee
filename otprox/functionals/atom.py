"""The form in which a functional enters a convex program."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..measures import Measure


class NotConvex(TypeError):
    """A functional has no disciplined convex form on a measure; the message says why and what would work."""


@dataclass(frozen=True, eq=False)
class Atom:
    """c·F as a disciplined convex (DCP) expression, returned by a functional's `atom(mu, c)`.

    build(variable, *data) makes the CVXPY expression, up to a constant; that of a constraint, a list of CVXPY
    constraints, for it adds 0 to the objective. On a Density the variable is the vector of
    densities on the cells, row-major; on Quantiles it is the vector of positions. `data` are the numbers that may
    change from one step to the next: they enter as CVXPY parameters, a float as a non-negative scalar, a tensor
    (*batch, k) as a vector of any sign, and must enter affinely (DPP), so that the program is compiled once. Atoms
    with equal `key` and equal shapes of data must have equal `build`; a functional that is hashable by its fields can
    be its own key. `ordered` says that the expression is defined on increasing positions only.

    >>> Atom(key="mass", build=lambda rho, c: c * rho[0], data=(2.0,)).data
    (2.0,)
    """

    key: Hashable
    build: Callable[..., Any]
    data: tuple[float | Tensor, ...] = ()
    ordered: bool = False


def nonnegative(c: float, name: str) -> float:
    """c, or NotConvex when it is negative."""
    if c < 0:
        raise NotConvex(f"{c:g}·{name} is not convex; the coefficient must be non-negative")
    return c


def curvature_root(precision: Tensor, mu: Measure, name: str) -> Tensor:
    """√p (*batch, 1) of a 1-D precision (…, 1, 1), or NotConvex when one is negative."""
    if (precision < 0).any():
        raise NotConvex(f"{name} is not convex: its curvature times its coefficient is negative; use Quantile")
    return precision[..., 0].sqrt().expand(*mu.batch, 1)


def squared_distance(x: Any, root: Any, centre: Any) -> Any:
    """Σ |root·x_i − centre|² in CVXPY, with parameters of shape (1,)."""
    import cvxpy as cp

    return cp.sum_squares(root[0] * x - centre[0])


def scatter(x: Any, root: Any) -> Any:
    """Σ |root·(x_i − mean of x)|² in CVXPY, as the minimum over centres, which keeps the program sparse."""
    import cvxpy as cp

    return cp.sum_squares(root[0] * (x - cp.Variable()))
