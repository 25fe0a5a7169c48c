"""Models in and out of the formats other tools read."""

from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.folder import load, save
from ragjax.interchange.resolve import resolve

__all__ = ["atomic_folder", "load", "resolve", "save"]
