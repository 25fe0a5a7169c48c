"""The step of a config's student for arrays that are only shapes."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ragjax.config import Compress
from ragjax.data.batches import Batch
from ragjax.distillation.objective import Objective
from ragjax.distillation.projections import with_projections
from ragjax.errors import InputError
from ragjax.models.decoder import Params, init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.memory import TrainingBytes, training_bytes_per_chip
from ragjax.parallel.mesh import BATCH_AXES, batch_shards
from ragjax.parallel.rules import check_divisible, shardings
from ragjax.planning.published import shape_of
from ragjax.quantization.latent import held_to_grid, trained_scheme
from ragjax.sparsity import choose_layers, sparsify
from ragjax.training.optimizer import make_optimizer
from ragjax.training.state import TrainState, initial_state
from ragjax.training.step import make_step


class StudentStep:
    """The step by which `ragjax compress` trains the student, without arrays.

    Attributes:
      objective: its loss, with the shapes of the student and of the teachers that run in it.
    """

    def __init__(self, config: Compress, mesh: Mesh | AbstractMesh):
        """Finds the shapes.

        Args:
          config: what would be run.
          mesh: devices, or their number along each axis.

        Raises:
          InputError: a model's shape is not known, or the mesh cannot split it; or the teacher is cached.
        """
        if config.teacher.cache is not None:
            raise InputError(
                "A plan has the teacher in the step, found teacher.cache: leave it out, --teacher.cache None."
            )
        train = config.train
        self._config, self._mesh = config, mesh
        teacher, student = _shapes(config)
        check_divisible(student, mesh, batch_size=train.batch_size // train.accumulate)
        objective = Objective(
            student, (), config.distill, dtype=jnp.dtype(train.dtype), remat=train.remat,
            shards=batch_shards(mesh), steps=train.steps,
        )  # fmt: skip
        others = tuple(map(shape_of, config.teacher.also))
        taught = (teacher, *others) if objective.needs_teacher else ()
        self.objective = dataclasses.replace(objective, teachers=taught)
        pruning = sparsify(make_optimizer(train), config.sparsity, total_steps=train.steps, seed=0)
        self._optimizer = held_to_grid(pruning, trained_scheme(config.quantize))

    def held(self) -> TrainingBytes:
        """Bytes on each chip of what lies there from step to step, and of the gradients."""
        teachers = tuple(map(_parameters, self.objective.teachers))
        student = self._student()
        return training_bytes_per_chip(student, self._optimizer, self._mesh, teacher=teachers)

    def traced(self) -> jax.stages.Traced:
        """The program before it is compiled; only where the mesh is of devices does it know of them."""
        step: Any = make_step(self.objective, self._optimizer, clip=self._config.train.clip)
        teachers = tuple(self._placed(_parameters(each)) for each in self.objective.teachers)
        with jax.set_mesh(self._mesh) if isinstance(self._mesh, Mesh) else nullcontext():
            return step.trace(self._state(), teachers, self._batch())

    def _state(self) -> TrainState:
        params = self._student()
        return self._placed(jax.eval_shape(lambda p: initial_state(p, self._optimizer), params))

    def _student(self) -> Params:
        """Its parameters, and what of the losses learns with them."""
        config, distill = self.objective.student, self._config.distill
        teacher = next(iter(self.objective.teachers), None)
        return jax.eval_shape(
            lambda: with_projections(init_params(config, 0), config, teacher, distill, seed=0)
        )

    def _batch(self) -> Batch:
        train = self._config.train
        shape = (train.accumulate, train.batch_size // train.accumulate, self._config.data.sequence_length)
        rows = NamedSharding(self._mesh, PartitionSpec(None, BATCH_AXES))
        kinds: dict[str, Any] = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
        if self._config.data.isolate_documents or self._config.data.pack_pairs:
            kinds |= {"segments": jnp.int32, "positions": jnp.int32}
        shapes = {name: jax.ShapeDtypeStruct(shape, kind) for name, kind in kinds.items()}
        return Batch(**self._placed(shapes, dict.fromkeys(kinds, rows)))

    def _placed(self, tree: Any, where: Any = None) -> Any:
        """The shapes with where they lie: as given, or as the rules for parameters have it."""
        if not isinstance(self._mesh, Mesh):
            return tree
        return jax.tree.map(
            lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
            tree, where or shardings(tree, self._mesh),
        )  # fmt: skip


def _parameters(config: DecoderConfig) -> Params:
    return jax.eval_shape(lambda: init_params(config, 0))


def _shapes(config: Compress) -> tuple[DecoderConfig, DecoderConfig]:
    """Of the teacher and of the student."""
    if config.teacher.model:
        teacher = shape_of(config.teacher.model)
    else:
        own = config.teacher.architecture
        teacher = DecoderConfig(
            config.data.vocab_size, own.positions, own.width, own.layers, own.heads, 4 * own.width,
            windows=own.windows, embedding_dropout=own.dropout, attention_dropout=own.dropout,
            residual_dropout=own.dropout,
        )  # fmt: skip
    start = shape_of(config.student.model) if config.student.model else teacher
    kept = choose_layers(start.layers, config.student.layers)
    return teacher, dataclasses.replace(start, layers=len(kept))
