"""Text from a model in onnxruntime."""

from ragjax.generation.onnx.slots import OnnxSlots
from ragjax.generation.onnx.writer import OnnxWriter, check_onnx

__all__ = ["OnnxSlots", "OnnxWriter", "check_onnx"]
