"""Everything exact about the Polchinski flow under one name: free fields, JKO steps, transitions, one and two sites."""

from .few_sites import FewSites, bessel_i, phi4, phi4_second_moment, sine_gordon
from .free_field import (
    FreeField,
    FreeModes,
    Scales,
    form_a,
    form_a_modes,
    form_b,
    form_b_modes,
    free_reference,
    mobility,
    prox_kl_modes,
    transition,
    transported,
)

__all__ = [
    "FewSites",
    "FreeField",
    "FreeModes",
    "Scales",
    "bessel_i",
    "form_a",
    "form_a_modes",
    "form_b",
    "form_b_modes",
    "free_reference",
    "mobility",
    "phi4",
    "phi4_second_moment",
    "prox_kl_modes",
    "sine_gordon",
    "transition",
    "transported",
]
