"""Flows of maximum mean discrepancies: on tori, on the line, between Gaussians, and of infinitely wide networks."""

from .line_discrepancy import (
    cramer_flow,
    cramer_flow_to_dirac,
    cramer_flow_to_pair,
    cramer_flow_to_uniform,
    dirac_to_dirac,
    energy_prox,
    gaussian_mmd2,
)
from .relu_network import relu_kernel, relu_singular_value, wfr_neuron
from .torus_discrepancy import (
    mode_rate,
    negative_sobolev_map,
    negative_sobolev_maximum,
    power_tail,
    sobolev_bound,
    sobolev_energy,
    sobolev_exponent,
)

__all__ = [
    "cramer_flow",
    "cramer_flow_to_dirac",
    "cramer_flow_to_pair",
    "cramer_flow_to_uniform",
    "dirac_to_dirac",
    "energy_prox",
    "gaussian_mmd2",
    "mode_rate",
    "negative_sobolev_map",
    "negative_sobolev_maximum",
    "power_tail",
    "relu_kernel",
    "relu_singular_value",
    "sobolev_bound",
    "sobolev_energy",
    "sobolev_exponent",
    "wfr_neuron",
]
