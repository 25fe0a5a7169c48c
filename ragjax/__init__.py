"""ragjax: a GPT in, a smaller and faster one out, with the proof that it kept its quality.

    import ragjax

    model = ragjax.load("openai-community/gpt2")       # a Hugging Face folder, GGUF file, hub id, run folder
    logits = model(tokens)                             # float32 [batch, seq, vocab]
    figures = ragjax.evaluate(model, "builtin:python")
    sparse = ragjax.prune(model).model                 # half of the weights, by Wanda
    light = ragjax.quantize(model).model               # weights in 8 bits each
    small = ragjax.shrink(model, Shrink(params=0.5)).model   # heads, neurons and width out of the arrays
    ragjax.compress(config, "runs/mine")
    ragjax.save(model, "my-gpt2")
    ragjax.export(model, "my-gpt2.gguf", format="gguf", dtype="q8_0")

Names are imported when first used, so that `import ragjax` itself needs no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragjax.evaluation.figures import Figures, evaluate
    from ragjax.generation import generate
    from ragjax.interchange.folder import load, save
    from ragjax.interchange.formats import export
    from ragjax.model import Model
    from ragjax.pruning import prune
    from ragjax.quantizing.quantize import quantize
    from ragjax.recipe import compress, pretrain
    from ragjax.shrinking import shrink

_HOMES = {
    "Figures": "ragjax.evaluation.figures",
    "Model": "ragjax.model",
    "compress": "ragjax.recipe",
    "evaluate": "ragjax.evaluation.figures",
    "export": "ragjax.interchange.formats",
    "generate": "ragjax.generation",
    "load": "ragjax.interchange.folder",
    "pretrain": "ragjax.recipe",
    "prune": "ragjax.pruning",
    "quantize": "ragjax.quantizing",
    "save": "ragjax.interchange.folder",
    "shrink": "ragjax.shrinking",
}

__all__ = [
    "Figures",
    "Model",
    "compress",
    "evaluate",
    "export",
    "generate",
    "load",
    "pretrain",
    "prune",
    "quantize",
    "save",
    "shrink",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ragjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
