"""Shrinking a trained model: fewer neurons, heads, features and layers in its arrays, and what that saves."""

from ragjax.shrinking.shrunk import ShrinkReport, Shrunk, shrink
from ragjax.shrinking.written import as_written

__all__ = ["ShrinkReport", "Shrunk", "as_written", "shrink"]
