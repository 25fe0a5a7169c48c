"""What it moves that products of int8 weights take their inputs in 16 bits on CPU.

Where the processor multiplies integers (AVX-512 VNNI), `pip install '.[cpu]'` decodes so. MODEL in int8, its
tables too, reads a text; told is the divergence of the next token's distribution, in nats, the mean and
the largest over tokens, and the share of tokens of which it is another that is the likeliest:

    weights     of the model as it was, from the same with int8 weights, which is float32 throughout
    bfloat16    of those int8 weights with all else in bfloat16, from float32
    16 bits     of those int8 weights with inputs in 16 bits, from float32
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ragjax
from ragjax.config import Quantize
from ragjax.generation.decoding import extend, scored
from ragjax.generation.network import laid_out
from ragjax.kernels.rounded import quads_serve
from ragjax.model import Model
from ragjax.models.key_values import KeyValues, empty_buffer
from ragjax.models.stand_ins import is_stand_in
from ragjax.quantizing import quantize


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="MODEL")
    parser.add_argument("text", help="file of text")
    parser.add_argument("--tokens", type=int, default=256, help="first tokens of the text (default 256)")
    options = parser.parse_args()
    if not quads_serve():
        raise SystemExit("Inputs stay floats here: no panels (`ragjax doctor`), or no AVX-512 VNNI.")
    whole = ragjax.load(options.model)
    small = quantize(whole, Quantize(scheme="int8", tables="int8")).model
    floats = small.in_floats()
    half = Model(floats.config, jax.tree.map(lambda x: x.astype(jnp.bfloat16), floats.params))
    tokens = whole.tokenizer(Path(options.text).read_text())["input_ids"][: options.tokens]
    exact = distributions(floats, tokens)
    others = {"weights": whole, "bfloat16": half, "16 bits": small}
    told = {name: against(exact, distributions(each, tokens)) for name, each in others.items()}
    print(json.dumps(told | {"tokens": len(tokens)}, indent=2))


def distributions(model: Model, tokens: list[int]) -> np.ndarray:
    """Log-probabilities behind each token, as decoding computes them, in float64."""
    config = model.config
    table = model.params["embedding"]["tokens"]
    kind = jnp.float32 if is_stand_in(table) else table.dtype
    shape = (1, config.key_value_heads, len(tokens), config.head_width)
    cache = tuple(KeyValues(*(empty_buffer(shape, kind) for _ in range(2))) for _ in range(config.layers))
    network = laid_out(model.params, config=config)

    @jax.jit
    def scores(network, cache):
        given = jnp.array([tokens]), jnp.zeros(1, jnp.int32), jnp.int32(0)
        hidden, _ = extend(*network, cache, *given, config=config)
        return scored(network.params, hidden, config)[0]

    found = np.asarray(scores(network, cache), np.float64)
    found -= found.max(-1, keepdims=True)
    return found - np.log(np.exp(found).sum(-1, keepdims=True))


def against(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    nats = (np.exp(exact) * (exact - found)).sum(-1)
    other = (exact.argmax(-1) != found.argmax(-1)).mean()
    return {"mean": float(nats.mean()), "largest": float(nats.max()), "other": float(other)}


if __name__ == "__main__":
    main()
