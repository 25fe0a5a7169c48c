"""A model as an ONNX graph in a folder, with its weights beside it: runs in onnxruntime without ragjax."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ragjax.data.tokenizer import save_tokenizer
from ragjax.errors import InputError
from ragjax.interchange.atomic import atomic_folder
from ragjax.interchange.families import family_for
from ragjax.interchange.json_file import write_object
from ragjax.interchange.layout import check_params
from ragjax.interchange.onnx.decoder import stored_head, write_decoder
from ragjax.interchange.onnx.graph import IR_VERSION, OPSET, Graph
from ragjax.interchange.onnx.weights import PRECISIONS, Precision
from ragjax.interchange.record import write_record
from ragjax.interchange.tokenizer import check_vocabulary
from ragjax.model import Model
from ragjax.models.stand_ins import has_stand_ins

GRAPH, DATA = "model.onnx", "model.onnx.data"

_README = Template("""\
# A language model as an ONNX graph

From tokens to the scores of the token that follows, with buffers of keys and values in and out. It runs in
onnxruntime, whose operators of the domain com.microsoft it uses: opset $opset, IR $ir.
Weights are $dtype$blocks.

| in | | |
|---|---|---|
| `tokens` | int32 [batch, new] | prompts, flush left, the shorter ones filled up; then one token each |
| `lengths` | int32 [batch] | tokens of each text so far, those in `tokens` among them |
| `past_key_values.I.key`, `.value` | float32 [batch, $heads, room, $head] | layers I = 0 ... $last |

| out | | |
|---|---|---|
| `logits` | float32 [batch, $vocabulary] | of the token after the last of each row |
| `present.I.key`, `.value` | as those that went in | with the keys and values of the new tokens |

Texts have up to $positions tokens, and `room` is at least as many as any of them gets. Bind an output to the
memory of its input, and no buffer is copied:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("$graph", providers=["CPUExecutionProvider"])
value = onnxruntime.OrtValue.ortvalue_from_numpy
buffers = {
    f"{layer}.{part}": value(np.zeros((1, $heads, 64, $head), np.float32))
    for layer in range($layers) for part in ("key", "value")
}
text = [1, 2, 3]
tokens = text
for _ in range(8):
    bound = session.io_binding()
    bound.bind_cpu_input("tokens", np.array([tokens], np.int32))
    bound.bind_cpu_input("lengths", np.array([len(text)], np.int32))
    for name, buffer in buffers.items():
        bound.bind_ortvalue_input(f"past_key_values.{name}", buffer)
        bound.bind_ortvalue_output(f"present.{name}", buffer)
    bound.bind_output("logits")
    session.run_with_iobinding(bound)
    tokens = [int(bound.get_outputs()[-1].numpy()[0].argmax())]
    text += tokens
print(text)
```

- `$data`: the larger constants, which `$graph` names by their places in it.
- `config.json`, and the tokenizer's files where the model has one: as on the Hugging Face hub.
- `ragjax.json`: where the model came from and what was done to it.
""")


class OnnxFolder(NamedTuple):
    """What was written."""

    path: Path
    matrices: int
    """Matrices of the graph, with tables of tokens."""
    kept: int
    """Those of them that hold a quantized model's own integers and scales."""


def export_onnx(model: Model, folder: str | Path, *, dtype: str = "float32") -> Path:
    """Writes a folder with a graph, as `write_onnx` does, and returns its path."""
    return write_onnx(model, folder, dtype=dtype).path


def write_onnx(model: Model, folder: str | Path, *, dtype: str = "float32") -> OnnxFolder:
    """Writes a folder with a graph that reads prompts and writes on, whole or not at all.

    Keys and values are kept in buffers that the caller holds, one row a text, each of its own length. A
    README.md beside the graph says how to run it. With "int8" the matrices of the blocks and the tables
    of tokens have 8 bits, in blocks of 32 inputs with a float32 scale; with "int8_128" in blocks of up to
    128, which is faster and loses more; with "int4" the matrices have 4 bits, and the tables 8. Products
    then round their other factor to 8 bits too. The rest is float32. Of a quantized model integers and scales
    are taken over as they are, where they are symmetric, the type has as many bits and groups of inputs are
    whole blocks; the rest is the floats that they stand for, or those rounded again.

    Args:
      model: the model.
      folder: where to; must not exist.
      dtype: type of the weights, of `PRECISIONS`.

    Returns:
      The folder's path, and what became of a quantized model's integers.

    Raises:
      InputError: the folder exists or cannot be written, the type is not known, the weights are not those
        of the config or not finite, or the package onnx is not installed.
    """
    if dtype not in PRECISIONS:
        raise InputError(f"dtype of an ONNX model must be one of {', '.join(PRECISIONS)}, found {dtype!r}.")
    precision, quantized = PRECISIONS[dtype], has_stand_ins(model.params)
    if not precision.block:
        model = model.in_floats()
    config = model.config
    check_params(model.params, config)
    if model.tokenizer is not None:
        check_vocabulary(model.tokenizer, config.vocab_size)
    values = family_for(config).config_to(config)
    about = _about(dtype, precision)
    path = Path(folder).expanduser().resolve()
    with atomic_folder(path) as partial:
        with closing(Graph(partial / DATA)) as graph:
            matrices, kept = write_decoder(graph, model.params, config, precision)
            if quantized and precision.block:
                about |= {"matrices": matrices, "integers_kept": kept}
            graph.save(partial / GRAPH, name="decoder", metadata={k: str(v) for k, v in about.items()})
        write_object(partial / "config.json", {**values, "dtype": "float32"})
        write_record(partial, model.params, (*model.history, {"did": "export", **about}))
        if model.tokenizer is not None:
            save_tokenizer(model.tokenizer, partial)
        blocks = f", in blocks of {precision.block} at most" if precision.block else ""
        (partial / "README.md").write_text(
            _README.substitute(
                opset=OPSET, ir=IR_VERSION, dtype=dtype, blocks=blocks, heads=config.key_value_heads,
                head=stored_head(config), layers=config.layers, last=config.layers - 1,
                vocabulary=config.vocab_size, positions=config.positions, graph=GRAPH, data=DATA,
            )
        )  # fmt: skip
    return OnnxFolder(path, matrices, kept)


def _about(dtype: str, precision: Precision) -> dict[str, Any]:
    """What the graph is, for its metadata and for ragjax.json."""
    about: dict[str, Any] = {"format": "onnx", "dtype": dtype, "opset": OPSET, "ir_version": IR_VERSION}
    if not precision.block:
        return about
    return about | {"bits": precision.bits, "table_bits": precision.of_tables.bits, "block": precision.block}
