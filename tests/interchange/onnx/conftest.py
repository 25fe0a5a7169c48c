"""Graphs of tiny models, open in onnxruntime."""

import pytest

from ragjax.interchange.onnx import export_onnx, load_onnx


@pytest.fixture
def opened(tmp_path):
    """Exports a model and opens it: gives the folder and what is open."""

    def run(model, dtype="float32"):
        folder = export_onnx(model, tmp_path / dtype, dtype=dtype)
        return folder, load_onnx(folder, threads=1)

    return run
