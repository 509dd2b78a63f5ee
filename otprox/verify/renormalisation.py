"""Claims about the flow of renormalisation."""

from __future__ import annotations

from functools import partial

from ..polchinski import HeatKernel, PauliVillars, orders
from .case import Case


def renormalisation() -> list[Case]:
    ring, forms = "exact law of the 3-ring at t = 1", orders.SCHEMES
    first = {
        **{f"free field, {name}": (ring, 0.05, partial(orders.ring, forms[name])) for name in forms},
        "16 × 16 sites, form A": ("exact law at t = ½", 0.02, partial(orders.torus, forms["form A"])),
        **{f"φ⁴ site, {X}": ("E φ² at C = ½", 0.2, partial(orders.one_site, forms[X])) for X in ("form A", "form B")},
    }
    return [
        *(
            Case(f"renormalisation: {name}", law, (tau, tau / 2, tau / 4), error, order=1.0)
            for name, (law, tau, error) in first.items()
        ),
        *(
            Case(f"renormalisation: Bridge, {C.__name__}", ring, (0.5, 0.1), partial(orders.bridge, C), within=1e-12)
            for C in (HeatKernel, PauliVillars)
        ),
    ]
