"""What a training would take of chips that are not there: memory, operations, collectives."""

from ragjax.planning.slice_plan import Plan, plan
from ragjax.planning.table import print_plan

__all__ = ["Plan", "plan", "print_plan"]
