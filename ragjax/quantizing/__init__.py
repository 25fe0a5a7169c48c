"""Quantizing a trained model: fewer bits a weight, and what that costs."""

from ragjax.quantizing.quantize import QuantizedModel, QuantizeReport, quantize

__all__ = ["QuantizeReport", "QuantizedModel", "quantize"]
