"""Everything exact about mean-field rotators under one name: the Kuramoto–Daido model, its states and transitions."""

from .rotators import Kuramoto, State
from .transitions import Transition, branch, hysteresis, second_transition, transition, triple_point

__all__ = ["Kuramoto", "State", "Transition", "branch", "hysteresis", "second_transition", "transition", "triple_point"]
