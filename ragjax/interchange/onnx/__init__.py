"""ONNX graphs for onnxruntime: out, and opened again to run."""

from ragjax.interchange.onnx.read import in_onnxruntime, is_onnx, load_onnx
from ragjax.interchange.onnx.write import export_onnx, write_onnx

__all__ = ["export_onnx", "in_onnxruntime", "is_onnx", "load_onnx", "write_onnx"]
