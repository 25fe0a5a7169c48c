"""What a config file holds: one training, or a compression from teacher to report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ragjax.config.architecture import Architecture
from ragjax.config.checked import Checked
from ragjax.config.data import Data
from ragjax.config.distill import Distill, values
from ragjax.config.evaluate import Evaluate
from ragjax.config.fake_quantize import FakeQuantize
from ragjax.config.mesh import Mesh
from ragjax.config.on_policy import OnPolicy, misfits
from ragjax.config.sparsity import Sparsity
from ragjax.config.student import Student
from ragjax.config.teacher import Teacher
from ragjax.config.train import Train


@dataclass(frozen=True)
class Pretrain(Checked):
    """Train one model: from scratch, or on from a model that exists."""

    model: str | None = None
    """MODEL to go on from; none: a new one of `architecture`."""
    seed: int = 0
    """Seed of initialisation, batches and dropout."""
    architecture: Architecture = field(default_factory=Architecture)
    """Shape of a new model."""
    data: Data = field(default_factory=Data)
    """Text."""
    train: Train = field(default_factory=Train)
    """Training."""
    sparsity: Sparsity = field(default_factory=Sparsity)
    """Pruning while training."""
    quantize: FakeQuantize = field(default_factory=FakeQuantize)
    """Training for few bits."""
    mesh: Mesh = field(default_factory=Mesh)
    """Device layout."""


@dataclass(frozen=True)
class Compress(Checked):
    """Compress a model: a teacher goes in, a smaller student and the proof come out."""

    seed: int = 0
    """Seed of initialisation, batches, dropout and random scores."""
    teacher: Teacher = field(default_factory=Teacher)
    """The model to compress."""
    student: Student = field(default_factory=Student)
    """Where the student starts, and what it is compared with."""
    data: Data = field(default_factory=Data)
    """Text."""
    train: Train = field(default_factory=Train)
    """Training of the student, the control and the scratch model."""
    sparsity: Sparsity = field(default_factory=Sparsity)
    """Pruning of the student while it trains."""
    quantize: FakeQuantize = field(default_factory=FakeQuantize)
    """Training of the student for few bits."""
    distill: Distill = field(default_factory=Distill)
    """What the student learns from."""
    on_policy: OnPolicy = field(default_factory=OnPolicy)
    """What it learns of its own writing."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Measurement at the end."""
    mesh: Mesh = field(default_factory=Mesh)
    """Device layout."""

    def _problems(self) -> list[str]:
        found = []
        shape = self.teacher.architecture
        if self.teacher.model is None:
            if self.data.sequence_length > shape.positions:
                found.append(
                    f"data.sequence_length {self.data.sequence_length} must not exceed "
                    f"teacher.architecture.positions {shape.positions}"
                )
            kept = self.student.layers
            most = kept if isinstance(kept, int) else max(kept or (0,)) + 1
            if self.student.model is None and most > shape.layers:
                found.append(f"student.layers {kept} asks for more than the teacher's {shape.layers} layers")
        cached = self.teacher.cache is not None
        found += misfits(
            self.on_policy, distill=self.distill, sequence_length=self.data.sequence_length,
            train=self.train, cached=cached,
        )  # fmt: skip
        return found + (self._cache_problems() if cached else [])

    def _cache_problems(self) -> list[str]:
        """What a cached teacher cannot do, or leaves unclear."""
        found = []
        if self.teacher.model is None:
            found.append("teacher.cache is of a teacher that exists: name it by teacher.model")
        if self.teacher.also:
            found.append("teacher.cache is of one teacher: leave teacher.also or it out")
        if not self.data.fixed_cuts:
            found.append("teacher.cache needs the same cuts of the text in every epoch: set data.fixed_cuts")
        if self.distill.inner:
            asking = ", ".join(f"distill.{name}" for name in self.distill.inner)
            found.append(f"{asking} look inside a running teacher: leave teacher.cache or them out")
        if self.distill.top_k:
            found.append(
                f"distill.top_k must be 0 where teacher.cache has a k of its own, found {self.distill.top_k}"
            )
        if len(set(values(self.distill.temperature))) > 1:
            found.append(
                f"teacher.cache is of one temperature, found distill.temperature {self.distill.temperature}"
            )
        if not self.distill.divergences:
            found.append("teacher.cache is read by the losses over the vocabulary, found none with a weight")
        return found


def to_dict(config: Compress | Pretrain) -> dict:
    """The config as plain JSON values, with its type's name under `kind`."""
    return {"kind": type(config).__name__, **dataclasses.asdict(config)}
