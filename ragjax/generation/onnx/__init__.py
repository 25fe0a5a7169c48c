"""Text from a model in onnxruntime."""

from ragjax.generation.onnx.writer import OnnxWriter, check_onnx

__all__ = ["OnnxWriter", "check_onnx"]
