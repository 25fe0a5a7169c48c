"""Parameters of models no laptop holds, and the bytes of them on each chip of a mesh.

Computed from config.json, shapes and sharding rules alone: nothing is downloaded, no accelerator is needed.
Training is of every parameter, in float32, with gradients, the two moments of AdamW, and masks of the blocks'
matrices; the teacher is a second model of the same size. Activations come on top.

    python scripts/model_shapes.py
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from ragjax.config import Sparsity, Train
from ragjax.interchange.families import family_of
from ragjax.models.decoder import init_params
from ragjax.parallel.memory import bytes_per_chip, training_bytes_per_chip
from ragjax.parallel.mesh import AXES
from ragjax.planning.published import PUBLISHED
from ragjax.sparsity import sparsify
from ragjax.training.optimizer import make_optimizer


class Giant(NamedTuple):
    """A published model, and chips to train it on."""

    values: dict[str, Any]
    """What its config.json says of its shape."""
    slice: str
    """Name of a TPU slice."""
    sizes: tuple[int, int, int]
    """Chips along data, fsdp and tensor."""
    hbm: int
    """GB of memory of a chip."""


GIANTS = {
    "gpt2-xl": Giant(PUBLISHED["gpt2-xl"], "v5e-16", (1, 16, 1), 16),
    "gpt-neo-2.7B": Giant(
        {"model_type": "gpt_neo", "vocab_size": 50257, "max_position_embeddings": 2048, "hidden_size": 2560,
         "num_layers": 32, "num_heads": 20, "intermediate_size": None, "activation_function": "gelu_new",
         "attention_types": [[["global", "local"], 16]], "window_size": 256, "layer_norm_epsilon": 1e-5},
        "v5e-16", (1, 16, 1), 16,
    ),
    "pythia-12b": Giant(
        {"model_type": "gpt_neox", "vocab_size": 50688, "max_position_embeddings": 2048, "hidden_size": 5120,
         "num_hidden_layers": 36, "num_attention_heads": 40, "intermediate_size": 20480, "hidden_act": "gelu",
         "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True,
         "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0},
        "v5e-64", (1, 16, 4), 16,
    ),
    "Meta-Llama-3-70B": Giant(
        {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192, "hidden_size": 8192,
         "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
         "intermediate_size": 28672, "hidden_act": "silu", "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
         "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": 128001},
        "v5p-128", (1, 16, 4), 95,
    ),
    "Qwen2.5-72B": Giant(
        {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 131072, "hidden_size": 8192,
         "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
         "intermediate_size": 29568, "hidden_act": "silu", "rope_theta": 1000000.0, "rms_norm_eps": 1e-5,
         "use_sliding_window": False, "tie_word_embeddings": False, "bos_token_id": 151643,
         "eos_token_id": 151643},
        "v5p-128", (1, 16, 4), 95,
    ),
    "opt-175b": Giant(PUBLISHED["opt-175b"], "v5p-256", (1, 16, 8), 95),
}  # fmt: skip
"""By name; a v5p slice is named after its cores, two to a chip."""


class Row(NamedTuple):
    """What is printed of one model; bytes are those of one chip."""

    parameters: int
    """Without the rows that pad the vocabulary; a tied head once."""
    inference: int
    """Parameters in bfloat16."""
    training: int
    teacher: int


def measure(giant: Giant) -> Row:
    """Counts one model."""
    family = family_of(giant.values)
    config = family.config_from(giant.values)
    mesh = AbstractMesh(giant.sizes, AXES)
    params = jax.eval_shape(lambda: init_params(config, 0))
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    optimizer = sparsify(make_optimizer(Train()), Sparsity(target=0.5), total_steps=300, seed=0)
    held = training_bytes_per_chip(params, optimizer, mesh, teacher=params)
    return Row(
        parameters=sum(math.prod(tensor.shape) for tensor in family.layout(config).stored),
        inference=bytes_per_chip(narrow, mesh),
        training=sum(held) - held.teacher,
        teacher=held.teacher,
    )


def main() -> None:
    print("| model | parameters | slice | fsdp x tensor | inference | training | with teacher | of |")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    for name, giant in GIANTS.items():
        row = measure(giant)
        _, fsdp, tensor = giant.sizes
        held = (row.inference, row.training, row.training + row.teacher)
        print(
            f"| {name} | {row.parameters:,} | {giant.slice} | {fsdp} x {tensor} | "
            + " | ".join(f"{size / 1e9:.2f} GB" for size in held)
            + f" | {giant.hbm} GB |"
        )


if __name__ == "__main__":
    main()
