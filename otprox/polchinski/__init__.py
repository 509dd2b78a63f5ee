"""Renormalisation as transport: the Polchinski flow of a field theory, its potential and its measure across scales."""

from .covariances import Covariances, Family, HeatKernel, PauliVillars
from .estimates import Estimate, Method
from .fluctuations import Chains, Fluctuations, Importance
from .models import FreeField, Phi4, SineGordon
from .potential import AtScale, RenormalisedPotential
from .routes import BesselSeries, ClosedForm, HermiteSites

__all__ = [
    "AtScale",
    "BesselSeries",
    "Chains",
    "ClosedForm",
    "Covariances",
    "Estimate",
    "Family",
    "Fluctuations",
    "FreeField",
    "HeatKernel",
    "HermiteSites",
    "Importance",
    "Method",
    "PauliVillars",
    "Phi4",
    "RenormalisedPotential",
    "SineGordon",
]
