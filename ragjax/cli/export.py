"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from ragjax.cli.arguments import ModelName


def run(given: list[str]) -> None:
    """Does `ragjax export`, given the words that follow it."""
    tyro.cli(_export, args=given, prog="ragjax export")


def _export(
    model: ModelName,
    out: Annotated[Positional[Path], arg(metavar="OUT")],
    format: Literal["hf", "bitmask", "gguf", "stablehlo", "onnx"],
    dtype: str | None = None,
) -> None:
    """Write a model for another runtime.

    Args:
        out: Folder or file to write; must not exist.
        format: hf: a Hugging Face folder; bitmask: a smaller one for sparse models, which ragjax alone
            reads; gguf: a file for llama.cpp; stablehlo: a program that JAX runs without ragjax; onnx: a
            graph for onnxruntime, the fastest on CPU.
        dtype: Type of the weights. hf, bitmask: float32, float16, bfloat16; gguf: f32, f16, q8_0, q4_0;
            stablehlo: float32, bfloat16; onnx: float32, int8, int8_128, int4. None: the first of these.
    """
    from ragjax.interchange.folder import load
    from ragjax.interchange.formats import check_request
    from ragjax.interchange.formats import export as write

    check_request(out, format, dtype)
    made = write(load(model), out, format=format, dtype=dtype)
    rows = {"wrote": out, "what": made.contents, "size": f"{made.size / 1e6:,.1f} MB", "use": made.use}
    print("\n".join(f"{name:<6}{value}" for name, value in rows.items()))
