"""What the step of a config's student takes, from shapes and from XLA's TPU compiler, without a chip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh, Mesh

from ragjax.config import Compress
from ragjax.parallel.memory import TrainingBytes
from ragjax.parallel.mesh import AXES, axis_sizes, make_mesh
from ragjax.planning.chips import slice_named
from ragjax.planning.products import product_flops
from ragjax.planning.student_step import StudentStep
from ragjax.planning.tpu_compiler import Compiled, compiled, devices
from ragjax.sparsity.shrink import flops_per_token, parameter_count


@dataclass(frozen=True)
class Plan:
    """What one step takes. Bytes are those of one chip, operations are of all chips."""

    topology: str | None
    """Name of the slice; none: as many chips as the config's mesh names."""
    mesh: dict[str, int]
    """Chips along each axis."""
    student_parameters: int
    """Without the rows that pad the vocabulary."""
    teacher_parameters: int
    """Of the teachers that run in the step; 0: none does."""
    tokens_per_step: int
    held: TrainingBytes
    """From the shapes, split by the sharding rules."""
    model_flops_per_token: float
    """Three forward passes of the student and one of each teacher, matrix products alone."""
    program_flops_per_token: float
    """Of the step as traced: also what is computed again, and what pads the vocabulary."""
    compiled: Compiled | None = None
    """None: from shapes alone."""

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.mesh.values())

    @property
    def other_bytes(self) -> int | None:
        """Activations, other temporaries and what pads arrays; none: not compiled, or refused."""
        if self.compiled is None or self.compiled.traffic is None:
            return None
        return max(self.compiled.bytes - sum(self.held), 0)

    @property
    def bytes_per_chip(self) -> int:
        """All of them, activations where they are known."""
        return max(sum(self.held), self.compiled.bytes if self.compiled else 0)

    @property
    def memory(self) -> float | None:
        """Bytes of HBM of a chip; none: no chip was named."""
        return slice_named(self.topology).chip.memory if self.topology else None

    @property
    def fits(self) -> bool | None:
        """Whether that is enough; none: no chip was named, or activations are not known and may not fit."""
        if self.memory is None:
            return None
        if self.bytes_per_chip > self.memory:
            return False
        return None if self.compiled is None else self.compiled.traffic is not None

    @property
    def seconds(self) -> float | None:
        """What the compiler expects the step's kernels to take, collectives apart; none: it does not say."""
        if self.topology is None or self.compiled is None or self.compiled.traffic is None:
            return None
        return self.compiled.traffic.cycles / slice_named(self.topology).chip.cycles_per_second or None

    @property
    def share_of_peak(self) -> float | None:
        """Model operations in those seconds, over what the chips could do."""
        if self.topology is None or self.seconds is None:
            return None
        done = self.model_flops_per_token * self.tokens_per_step / self.chips / self.seconds
        return done / slice_named(self.topology).chip.flops

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        traffic = self.compiled.traffic if self.compiled else None
        return {
            "topology": self.topology, "chips": self.chips, "mesh": self.mesh,
            "teacher_parameters": self.teacher_parameters, "student_parameters": self.student_parameters,
            "tokens_per_step": self.tokens_per_step,
            "bytes": self.held._asdict() | {"activations_and_others": self.other_bytes},
            "bytes_per_chip": self.bytes_per_chip, "memory": self.memory, "fits": self.fits,
            "model_flops_per_token": self.model_flops_per_token,
            "program_flops_per_token": self.program_flops_per_token,
            "collectives": {k: v._asdict() for k, v in traffic.collectives.items()} if traffic else None,
            "compiler_seconds": self.seconds, "share_of_peak": self.share_of_peak,
        }  # fmt: skip


def plan(config: Compress, topology: str | None = None, *, compile: bool = True) -> Plan:
    """What the step of a config's student takes on a slice of TPU chips, none of which need be there.

    The step is one that also updates the masks. Nothing is downloaded: the models' shapes come from a folder,
    from the names of GPT-2 and OPT, or from the architecture that is trained here.

    Args:
      config: what would be run.
      topology: the slice, such as v5e:4x4; none: the chips that `config.mesh` names, -1 being one.
      compile: also have it compiled for that slice, by libtpu; for all but the smallest models, minutes.

    Raises:
      InputError: there is no such slice, the models do not fit the mesh, or libtpu is missing.

    Example:
      >>> from ragjax.config import Teacher
      >>> plan(Compress(teacher=Teacher(model="gpt2"))).teacher_parameters
      124439808
    """
    where = slice_named(topology) if topology else None
    sizes = axis_sizes(config.mesh, where.chips if where else None)
    mesh: Mesh | AbstractMesh = AbstractMesh(sizes, AXES)
    if where and compile:
        mesh = make_mesh(config.mesh, devices(where))
    step = StudentStep(config, mesh)
    student, teachers = step.objective.student, step.objective.teachers
    length = config.data.sequence_length
    tokens = config.train.batch_size * length
    program = step.traced()
    return Plan(
        topology=topology,
        mesh=dict(zip(AXES, sizes, strict=True)),
        student_parameters=parameter_count(student),
        teacher_parameters=sum(map(parameter_count, teachers)),
        tokens_per_step=tokens,
        held=step.held(),
        model_flops_per_token=3 * flops_per_token(student, length)
        + sum(flops_per_token(each, length) for each in teachers),
        program_flops_per_token=product_flops(program.jaxpr.jaxpr) / tokens,
        compiled=compiled(program) if where and compile else None,
    )
