"""What runs a model: JAX, or onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from ragjax.config import Decoding
from ragjax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ragjax.model import Model
    from ragjax.onnx_model import OnnxModel

Engine: TypeAlias = Literal["jax", "onnx"]


def load_for(
    engine: Engine | None,
    model: str,
    *,
    threads: int | None,
    options: Decoding,
    draft: str | None,
    mesh: Mesh | None,
) -> Model | OnnxModel:
    """MODEL, opened in what is to run it.

    Args:
      engine: None: onnxruntime for a folder with an ONNX graph, JAX for all else.
      model: MODEL, or such a folder.
      threads: of onnxruntime.
      options: what will be asked of the model.
      draft: MODEL that is to help it.
      mesh: devices of JAX.

    Raises:
      InputError: there is no such model, or it cannot be run as asked; before it is opened, where possible.
    """
    from ragjax.generation.onnx import check_onnx
    from ragjax.interchange.folder import load
    from ragjax.interchange.onnx import in_onnxruntime, is_onnx, load_onnx

    exported = is_onnx(model)
    if engine == "onnx" or (engine is None and exported):
        check_onnx(options, draft, mesh)
        return load_onnx(model, threads=threads) if exported else in_onnxruntime(load(model), threads=threads)
    if threads is not None:
        raise InputError(
            f"threads are those of onnxruntime, found {threads}: leave it out, or set engine to onnx."
        )
    return load(model, mesh=mesh)
