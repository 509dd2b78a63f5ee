"""Renormalisation as transport: the Polchinski flow of a field theory, its potential and its measure across scales."""

from .covariances import Covariances, Family, HeatKernel, PauliVillars
from .estimates import Estimate, Method
from .fluctuations import Chains, Fluctuations, Importance
from .models import FreeField, Phi4, SineGordon
from .observables import (
    CorrelationLength,
    EffectivePotential,
    Magnetisation,
    Observable,
    StructureFactor,
    Susceptibility,
    TwoPoint,
    radial,
)
from .potential import AtScale, RenormalisedPotential
from .reference import LongRun, autocorrelated
from .routes import BesselSeries, ClosedForm, HermiteSites
from .schemes import form_a, form_b, forward_backward, forward_heat, reference_a, reference_b
from .steps import Ascended, Ascent, Bridge, Learned, ascending

__all__ = [
    "Ascended",
    "Ascent",
    "AtScale",
    "BesselSeries",
    "Bridge",
    "Chains",
    "ClosedForm",
    "CorrelationLength",
    "Covariances",
    "EffectivePotential",
    "Estimate",
    "Family",
    "Fluctuations",
    "FreeField",
    "HeatKernel",
    "HermiteSites",
    "Importance",
    "Learned",
    "LongRun",
    "Magnetisation",
    "Method",
    "Observable",
    "PauliVillars",
    "Phi4",
    "RenormalisedPotential",
    "SineGordon",
    "StructureFactor",
    "Susceptibility",
    "TwoPoint",
    "ascending",
    "autocorrelated",
    "form_a",
    "form_b",
    "forward_backward",
    "forward_heat",
    "radial",
    "reference_a",
    "reference_b",
]
