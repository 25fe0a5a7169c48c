"""Compiles a config's train step for TPU chips that are not there, and says what each would hold.

Needs `pip install libtpu` of the version that fits JAX, and no TPU. The bytes are the compiler's own
(`memory_analysis`); the shapes of a pretrained GPT-2 are known by its name, so that nothing is downloaded.

    python scripts/compile_for_tpu.py configs/gpt2_xl_tpu.py --topology v5e:4x4
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from ragjax.config import Compress
from ragjax.config_file import read_config
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import BATCH_AXES, batch_shards, make_mesh
from ragjax.parallel.rules import shardings
from ragjax.sparsity import choose_layers, sparsify
from ragjax.training.optimizer import make_optimizer
from ragjax.training.state import initial_state
from ragjax.training.step import make_step

SIZES = {
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
}
"""Layers, width and heads of the GPT-2 checkpoints."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--topology", default="v5e:4x4", help="chips, such as v5e:4x4 or v5p:4x4x4")
    parser.add_argument("--hbm", type=float, default=16.0, help="GB of memory on a chip (default 16, v5e)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    config, _ = read_config(options.config)
    found = compiled(config, options.topology)
    found["fits"] = "yes" if found["bytes_per_chip"] < options.hbm * 1e9 else "no"
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        shown = (
            f"{value / 1e9:.2f} GB" if "bytes" in name else f"{value:,}" if isinstance(value, int) else value
        )
        print(f"{name:<28}{shown}")


def compiled(config: Compress, topology: str) -> dict:
    """Compiles the student's step and returns what the compiler says of it."""
    teacher = shape_of(config)
    kept = choose_layers(teacher.layers, config.student.layers)
    student = dataclasses.replace(teacher, layers=len(kept))
    chips = topologies.get_topology_desc(topology, "tpu").devices
    mesh = make_mesh(config.mesh, chips)
    train = config.train
    objective = Objective(
        student,
        (teacher,),
        config.distill,
        dtype=jnp.dtype(train.dtype),
        remat=train.remat,
        shards=batch_shards(mesh),
        steps=train.steps,
    )
    optimizer = sparsify(make_optimizer(train), config.sparsity, total_steps=train.steps, seed=0)

    def shapes(tree, where):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)

    def parameters(of):
        return jax.eval_shape(lambda: init_params(of, 0))

    state = jax.eval_shape(lambda p: initial_state(p, optimizer), parameters(student))
    state = shapes(state, shardings(state, mesh))
    frozen = shapes(parameters(teacher), shardings(parameters(teacher), mesh))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, BATCH_AXES))
    size = (train.accumulate, train.batch_size // train.accumulate, config.data.sequence_length)
    ids = jax.ShapeDtypeStruct(size, jnp.int32, sharding=rows)
    batch = Batch(ids, ids, jax.ShapeDtypeStruct(size, jnp.float32, sharding=rows))
    with jax.set_mesh(mesh):
        step = make_step(objective, optimizer, clip=train.clip)
        began = time.monotonic()
        program = step.lower(state, (frozen,), batch).compile()
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "topology": topology,
        "chips": len(chips),
        "student_parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "teacher_parameters": sum(x.size for x in jax.tree.leaves(frozen)),
        "tokens_per_step": train.batch_size * config.data.sequence_length,
        "state_and_teacher_bytes": held,
        "temporary_bytes": memory.temp_size_in_bytes,
        "bytes_per_chip": held + memory.temp_size_in_bytes,
        "compile_seconds": round(time.monotonic() - began, 1),
    }


def shape_of(config: Compress) -> DecoderConfig:
    """The teacher's shape, from its name or from the architecture that is trained here."""
    name = (config.teacher.model or "").split("/")[-1]
    if name in SIZES:
        layers, width, heads = SIZES[name]
        vocabulary, positions = 50_257, 1024
    else:
        own = config.teacher.architecture
        layers, width, heads, positions = own.layers, own.width, own.heads, own.positions
        vocabulary = config.data.vocab_size
    return DecoderConfig(vocabulary, positions, width, layers, heads, 4 * width)


if __name__ == "__main__":
    main()
