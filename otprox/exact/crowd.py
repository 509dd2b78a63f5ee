"""A crowd on the line that walks towards a point and may not exceed a density, exactly."""

from __future__ import annotations

from torch import Tensor


def queue_flow(x: Tensor, t: float, density: float, bound: float = 1.0) -> Tensor:
    """sign(x)·max(|x| − t, |x|·density/bound): where those are at time t who were at x, uniform on [−ℓ, ℓ], at 0.

    It is the flow of ∫|x| dρ under ρ ≤ bound: all walk towards 0 at unit speed, until they stand at the edge of the
    block of density `bound`, which has the half-width t·density/(bound − density) while people arrive. JKO steps are
    exact, whatever their size: the step of the walkers is a shift by tau, and the constraint cuts it off where the
    block will be.
    """
    if not 0 < density <= bound:
        raise ValueError(f"the crowd has a density in (0, bound], not {density} with bound {bound}")
    return x.sign() * (x.abs() - t).maximum(x.abs() * (density / bound))
