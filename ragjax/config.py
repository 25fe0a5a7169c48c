"""The schema of a run: frozen dataclasses, checked when built, read without importing JAX.

A config file is a Python file that binds `config` to a `Compress` or a `Pretrain`. Every field can be
overridden on the command line (`--train.learning-rate 3e-4`); the resolved config is stored as
JSON in the run folder and can itself be run again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from ragjax.errors import InputError, listing

Dtype = Literal["float32", "bfloat16"]
Score = Literal["magnitude", "random", "saliency"]
Pattern = Literal["tensor", "row", "global", "n_of_m", "block"]
SparsityMethod = Literal["gradual", "movement", "ste", "sr_ste", "set", "rigl", "ac_dc", "rewind"]
SparsitySchedule = Literal["one_shot", "periodic", "cubic", "polynomial", "cosine", "geometric"]
Budget = Literal["uniform", "erk"]
OneShotMethod = Literal["magnitude", "random", "wanda", "ria", "sparsegpt", "alps"]
OneShotBudget = Literal["uniform", "erk", "owl", "global", "table"]
Importance = Literal["activation", "taylor", "magnitude", "random"]
Shrinkable = Literal["neurons", "heads", "width", "layers"]
RateSchedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "lion", "adafactor", "sgd"]
Remat = Literal["none", "dots", "full"]


class _Checked:
    """Runs `_problems()` when the dataclass is built and reports every problem at once."""

    def _problems(self) -> list[str]:
        return []

    def __post_init__(self) -> None:
        found = self._problems()
        if found:
            raise InputError(f"{type(self).__name__}: cannot be used:\n{listing(found)}")


def _at_least(owner: object, low: float, *names: str) -> list[str]:
    return [
        f"{name} must be at least {low:g}, found {getattr(owner, name)!r}"
        for name in names
        if not getattr(owner, name) >= low
    ]


def _share(owner: object, *names: str) -> list[str]:
    """Problems of fields that must lie in [0, 1)."""
    return [
        f"{name} must be at least 0 and below 1, found {getattr(owner, name)!r}"
        for name in names
        if not 0 <= getattr(owner, name) < 1
    ]


@dataclass(frozen=True)
class Architecture(_Checked):
    """A GPT-2 to train from scratch."""

    layers: int = 6
    """Transformer blocks."""
    width: int = 256
    """Residual width; divisible by `heads`."""
    heads: int = 4
    """Attention heads."""
    positions: int = 256
    """Longest sequence the model can read, in tokens."""
    windows: tuple[int, ...] = ()
    """Attention window of each layer in tokens, repeated to the depth; 0 is dense. GPT-3: (0, 256)."""
    dropout: float = 0.0
    """Dropout on embeddings, attention and residuals."""

    def _problems(self) -> list[str]:
        found = _at_least(self, 1, "layers", "width", "heads", "positions") + _share(self, "dropout")
        if not found and self.width % self.heads:
            found.append(f"width must be divisible by heads, found {self.width} and {self.heads}")
        found += [f"windows must not be negative, found {w}" for w in self.windows if w < 0]
        return found


@dataclass(frozen=True)
class Data(_Checked):
    """Where the text comes from and how it is cut into sequences."""

    train: str = "builtin:python"
    """Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME."""
    validation: str | None = None
    """Source URI held out for evaluation; none: the source's own split, by document."""
    sequence_length: int = 128
    """Tokens in a training sequence."""
    tokenizer: str | None = None
    """MODEL whose tokenizer is used; none: the teacher's, or one trained here on `train`."""
    vocab_size: int = 2048
    """Size of a tokenizer trained here."""
    isolate_documents: bool = False
    """Forbid attention across the documents packed into one sequence."""
    cache: str | None = None
    """Folder of the token cache; none: RAGJAX_CACHE or ~/.cache/ragjax."""

    def _problems(self) -> list[str]:
        found = _at_least(self, 2, "sequence_length") + _at_least(self, 257, "vocab_size")
        return found + ([] if self.train else ["train must name a source, found an empty string"])


@dataclass(frozen=True)
class Train(_Checked):
    """One training: how long, how fast, in what numbers."""

    steps: int = 300
    """Optimizer steps."""
    batch_size: int = 16
    """Sequences in a step, over all hosts and microbatches."""
    accumulate: int = 1
    """Microbatches a step is split into; gradients are summed over them."""
    optimizer: Optimizer = "adamw"
    """Update rule."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup: int = 20
    """Steps of linear warm-up."""
    schedule: RateSchedule = "cosine"
    """Shape of the learning rate after warm-up."""
    final_rate: float = 0.1
    """Learning rate at the end, as a share of the peak."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors are never decayed."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.95
    """Decay of the second moment."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0: no clipping."""
    dtype: Dtype = "float32"
    """Type the network computes in; parameters and moments stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again: nothing, all but matrix products, or everything."""
    max_bad_steps: int = 5
    """Consecutive steps with a non-finite gradient after which the run stops."""
    log_every: int = 10
    """Steps between lines of progress."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    evaluate_every: int = 100
    """Steps between looks at the validation loss; 0: only at the end."""
    keep: int = 2
    """Checkpoints kept: the latest, and the best of this many less one."""

    def _problems(self) -> list[str]:
        found = _at_least(
            self, 1, "steps", "batch_size", "accumulate", "max_bad_steps", "log_every", "checkpoint_every"
        )
        found += _at_least(self, 0, "warmup", "weight_decay", "clip", "evaluate_every", "final_rate")
        found += _at_least(self, 2, "keep") + _share(self, "b1", "b2")
        if not self.learning_rate > 0:
            found.append(f"learning_rate must be above 0, found {self.learning_rate!r}")
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            found.append(f"batch_size {self.batch_size} must be divisible by accumulate {self.accumulate}")
        if self.warmup >= self.steps:
            found.append(f"warmup must be below steps, found {self.warmup} and {self.steps}")
        return found


@dataclass(frozen=True)
class Sparsity(_Checked):
    """Which weights are removed, and when."""

    target: float = 0.0
    """Share of the prunable weights that is removed; 0: none. For n_of_m it is what n and m say."""
    method: SparsityMethod = "gradual"
    """How weights go, and whether they come back."""
    score: Score = "magnitude"
    """What makes a weight worth keeping; movement has its own."""
    pattern: Pattern = "tensor"
    """Where the lowest scores are looked for: a tensor, an output row, the whole model, n of m, or blocks."""
    n: int = 2
    """n_of_m: weights kept in each group."""
    m: int = 4
    """n_of_m: consecutive inputs in a group."""
    block: tuple[int, int] = (8, 128)
    """block: inputs and outputs of a block; 8 x 128 and 128 x 128 are a TPU's tiles."""
    budget: Budget = "uniform"
    """Sparsity of each matrix: the same, or by Erdos-Renyi-Kernel, which spares small and narrow ones."""
    schedule: SparsitySchedule = "cubic"
    """How sparsity grows from `start` to `stop`; set, rigl and ac_dc reach the target at once."""
    power: float = 3.0
    """polynomial: 1 is a straight line, 3 is cubic."""
    start: int = 0
    """First step that updates the masks."""
    stop: int | None = None
    """Step at which the target is reached, or regrowth or alternation ends; none: half of the training."""
    every: int = 10
    """Steps between updates of the masks; ac_dc: of a phase; rewind: of a round."""
    fraction: float = 0.3
    """set, rigl: share of the kept weights replaced at first, falling to 0 at `stop`; 0: static masks."""
    decay: float = 2e-4
    """sr_ste: how strongly masked weights are drawn to 0."""
    rewind_to: int = 0
    """rewind: step whose weights every round goes back to."""
    prunable: tuple[str, ...] = ("layers/*/kernel",)
    """Names of the parameters that may be pruned, as shell patterns over the whole path."""

    def _problems(self) -> list[str]:
        found = _share(self, "target", "fraction") + _at_least(self, 1, "every", "n", "m")
        found += _at_least(self, 0, "start", "rewind_to", "decay")
        found += [f"block must have sides of at least 1, found {self.block}"] * (min(self.block) < 1)
        if not self.power > 0:
            found.append(f"power must be above 0, found {self.power!r}")
        if self.stop is not None and self.stop < self.start:
            found.append(f"stop must not lie before start, found {self.stop} and {self.start}")
        if self.pattern == "n_of_m" and self.m > 0:
            if not self.n < self.m:
                found.append(f"n must be below m, found {self.n} of {self.m}")
            elif self.target and abs(self.target - (1 - self.n / self.m)) > 1e-9:
                found.append(
                    f"{self.n} of {self.m} removes {1 - self.n / self.m:g} of the weights, "
                    f"target says {self.target:g}: set them alike"
                )
        if not self.prunable:
            found.append("prunable must name at least one pattern, such as 'layers/*/kernel'")
        return found + self._misfits()

    def _misfits(self) -> list[str]:
        """Fields that do not go together, or that would be passed over in silence."""
        found = [
            f"{name} is read by the method {' or '.join(methods)} alone, found {self.method!r}: "
            f"leave it at {default!r}"
            for name, methods in _READ_BY.items()
            if self.method not in methods and getattr(self, name) != (default := getattr(type(self), name))
        ]
        if self.method == "movement" and self.score != "magnitude":
            found.append(f"movement has its own score, found {self.score!r}: leave it at 'magnitude'")
        if self.method in ("set", "rigl") and self.pattern != "tensor":
            found.append(
                f"{self.method} regrows within a matrix: pattern must be 'tensor', found {self.pattern!r}"
            )
        if self.method == "rewind" and self.rewind_to > self.start:
            found.append(f"rewind_to must not lie after start, found {self.rewind_to} and {self.start}")
        if self.budget == "erk" and self.pattern in ("global", "n_of_m"):
            found.append(f"budget 'erk' needs the pattern 'tensor', 'row' or 'block', found {self.pattern!r}")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern == "n_of_m":
            object.__setattr__(self, "target", 1 - self.n / self.m)


_READ_BY: dict[str, tuple[str, ...]] = {
    "schedule": ("gradual", "rewind", "ste", "sr_ste", "movement"),
    "fraction": ("set", "rigl"),
    "decay": ("sr_ste",),
    "rewind_to": ("rewind",),
}
"""Fields of `Sparsity` that some methods alone read."""


@dataclass(frozen=True)
class OneShot(_Checked):
    """Which weights of a trained model are removed at once, guided by a calibration text."""

    method: OneShotMethod = "wanda"
    """What chooses the weights; sparsegpt and alps also change those that stay."""
    sparsity: float | None = None
    """Share of the prunable weights that is removed; none: 0.5, or what n and m say."""
    pattern: Pattern | None = None
    """Where weights compete: tensor, row (of an output), n_of_m, block; global is tensor with the budget
    global. None: what the method's paper does, row for wanda and ria, tensor for the others."""
    n: int = 2
    """n_of_m: weights kept in each group."""
    m: int = 4
    """n_of_m: consecutive inputs in a group."""
    block: tuple[int, int] = (8, 128)
    """block: inputs and outputs of a block; 8 x 128 and 128 x 128 are a TPU's tiles."""
    budget: OneShotBudget = "uniform"
    """How sparsity is shared out: alike, by a matrix's shape (erk), by a layer's outliers (owl), as when
    all scores are ranked together (global), or as a file says (table)."""
    table: str | None = None
    """table: JSON file of sparsities by name pattern, each one number or one for each layer."""
    calibration: str = "builtin:python"
    """Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME."""
    samples: int = 128
    """Sequences of the calibration text."""
    sequence_length: int | None = None
    """Tokens in a sequence; none: as many as the model has positions, 1024 at most."""
    batch_size: int = 8
    """Sequences that are on the device at once, at most."""
    dampening: float = 0.01
    """sparsegpt, alps: added to the diagonal of the gram, as a share of its mean."""
    seed: int = 0
    """Seed of the choice of sequences, and of random scores."""
    prunable: tuple[str, ...] = ("layers/*/kernel",)
    """Names of the parameters that may be pruned, as shell patterns over the whole path."""

    def _problems(self) -> list[str]:
        found = _at_least(self, 1, "n", "m", "samples", "batch_size")
        found += _share(self, "sparsity") if self.sparsity is not None else []
        found += _at_least(self, 2, "sequence_length") if self.sequence_length is not None else []
        if min(self.block) < 1:
            found.append(f"block must have sides of at least 1, found {self.block}")
        if not self.dampening > 0:
            found.append(f"dampening must be above 0, found {self.dampening!r}")
        if not self.calibration:
            found.append("calibration must name a source, found an empty string")
        if not self.prunable:
            found.append("prunable must name at least one pattern, such as 'layers/*/kernel'")
        return found + self._misfits()

    def _misfits(self) -> list[str]:
        """Fields that do not go together."""
        found = []
        if self.pattern == "n_of_m" and self.m > 0:
            if not self.n < self.m:
                found.append(f"n must be below m, found {self.n} of {self.m}")
            elif self.sparsity is not None and abs(self.sparsity - (1 - self.n / self.m)) > 1e-9:
                found.append(
                    f"{self.n} of {self.m} removes {1 - self.n / self.m:g} of the weights, "
                    f"sparsity says {self.sparsity:g}: leave it out"
                )
            if self.budget != "uniform":
                found.append(f"n_of_m removes as much everywhere: budget {self.budget} has nothing to share")
        if self.pattern == "global" and self.budget not in ("uniform", "global"):
            found.append(f"the pattern global is a budget of its own, found budget {self.budget}")
        if (self.budget == "table") != (self.table is not None):
            found.append(
                f"budget table and a file in `table` go together, found {self.budget} and {self.table!r}"
            )
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern == "global":
            object.__setattr__(self, "pattern", "tensor")
            object.__setattr__(self, "budget", "global")
        if self.sparsity is None:
            share = 1 - self.n / self.m if self.pattern == "n_of_m" else 0.5
            object.__setattr__(self, "sparsity", share)


@dataclass(frozen=True)
class Shrink(_Checked):
    """How small a trained model is made, and what stays of it.

    Either a budget (params, flops or latency), sizes (layers, width, heads, kv_heads, mlp_width), or both: a
    size that is given is not searched for.
    """

    params: float | None = None
    """Budget: parameters, as a share of the model's."""
    flops: float | None = None
    """Budget: operations of the forward pass a token, as a share of the model's."""
    latency: float | None = None
    """Budget: seconds of the forward pass on this device, as a share of the model's; candidates are timed."""
    what: tuple[Shrinkable, ...] = ()
    """What a budget may shrink; none: neurons, heads, and the width where heads have to fill it (GPT-2)."""
    layers: int | None = None
    """Transformer blocks that stay."""
    width: int | None = None
    """Residual width that stays."""
    heads: int | None = None
    """Query heads that stay; none: all, or as many as the model's family can write with `width`."""
    kv_heads: int | None = None
    """Heads of keys and values that stay; none: with `heads`, by whole groups where that comes out even."""
    mlp_width: int | None = None
    """Neurons of an MLP that stay."""
    importance: Importance = "activation"
    """What makes a part worth keeping."""
    compensate: bool = True
    """Refit the projections that read heads and neurons, so that what stays makes up for what went."""
    multiple: int = 8
    """Budgets choose neurons and width in multiples of it; 128 is a TPU's tile."""
    tensor: int = 1
    """Devices that will split each layer: heads and neurons stay divisible by it."""
    batch_size: int = 1
    """latency: sequences at once."""
    length: int | None = None
    """flops, latency: tokens in a sequence; none: the model's positions, 512 at most."""
    calibration: str = "builtin:python"
    """Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME."""
    samples: int = 128
    """Sequences of the calibration text."""
    sequence_length: int | None = None
    """Tokens in a calibration sequence; none: the model's positions, 256 at most."""
    seed: int = 0
    """Seed of the choice of sequences, and of random importance."""

    def _problems(self) -> list[str]:
        budgets = [name for name in ("params", "flops", "latency") if getattr(self, name) is not None]
        sizes = ("layers", "width", "heads", "kv_heads", "mlp_width")
        given = [name for name in (*sizes, "length", "sequence_length") if getattr(self, name) is not None]
        found = _at_least(self, 1, "multiple", "tensor", "batch_size", "samples", *given)
        found += [
            f"{name} must lie between 0 and 1, found {getattr(self, name)!r}"
            for name in budgets
            if not 0 < getattr(self, name) < 1
        ]
        if len(budgets) > 1:
            found.append(f"there can be one budget, found {', '.join(budgets)}: leave out all but one")
        if not budgets and not set(given) & set(sizes):
            found.append(f"a budget (params, flops, latency) or a size ({', '.join(sizes)}) must be given")
        if self.what and not budgets:
            found.append("what says what a budget may shrink: give params, flops or latency, or leave it out")
        named = {"neurons": "mlp_width", "heads": "heads", "width": "width", "layers": "layers"}
        found += [
            f"{field} is given, so that a budget cannot choose {kind}: leave one of them out"
            for kind, field in named.items()
            if kind in self.what and field in given
        ]
        if not self.calibration:
            found.append("calibration must name a source, found an empty string")
        return found


@dataclass(frozen=True)
class Distill(_Checked):
    """What the student learns from: the weights of the losses that are summed."""

    forward_kl: float = 0.9
    """Weight of T^2 KL(teacher || student) over the vocabulary."""
    cross_entropy: float = 0.1
    """Weight of the negative log-likelihood of the text itself."""
    hidden_mse: float = 0.0
    """Weight of the mean squared error between hidden states of paired layers."""
    temperature: float = 1.0
    """Temperature T of both distributions in the KL."""
    chunk_tokens: int = 512
    """Tokens per device whose vocabulary logits live at once."""

    def _problems(self) -> list[str]:
        weights = ("forward_kl", "cross_entropy", "hidden_mse")
        found = _at_least(self, 0, *weights) + _at_least(self, 1, "chunk_tokens")
        if not self.temperature > 0:
            found.append(f"temperature must be above 0, found {self.temperature!r}")
        if not any(getattr(self, name) for name in weights):
            found.append(f"at least one of {', '.join(weights)} must be above 0")
        return found


@dataclass(frozen=True)
class Teacher(_Checked):
    """The model to compress: one that exists, or one trained here first."""

    model: str | None = None
    """MODEL: a Hugging Face folder, a hub id, or a run folder; none: train `architecture`."""
    architecture: Architecture = field(default_factory=Architecture)
    """Shape of a teacher trained here."""
    train: Train = field(default_factory=Train)
    """Training of a teacher trained here."""


@dataclass(frozen=True)
class Student(_Checked):
    """Where the student starts."""

    layers: int | tuple[int, ...] | None = None
    """Teacher layers it keeps: how many (evenly, with both ends), or which; none: all."""
    control: bool = True
    """Also train the control: the same start, sparsity, tokens and steps, without the teacher's loss."""
    scratch: bool = False
    """Also train a student of the same shape from a random start."""

    def _problems(self) -> list[str]:
        chosen = (self.layers,) if isinstance(self.layers, int) else self.layers or ()
        low = 1 if isinstance(self.layers, int) else 0
        found = [f"layers must be at least {low}, found {n}" for n in chosen if n < low]
        if isinstance(self.layers, tuple) and list(self.layers) != sorted(set(self.layers)):
            found.append(f"layers must rise without repeats, found {self.layers}")
        if self.layers == ():
            found.append("layers must name at least one layer, found an empty list")
        return found


@dataclass(frozen=True)
class Evaluate(_Checked):
    """How models are measured at the end."""

    sequence_length: int | None = None
    """Tokens the model sees at once; none: as many as it has positions, 2048 at most."""
    stride: int | None = None
    """Tokens the window moves; none: half of `sequence_length`."""
    max_tokens: int | None = None
    """Tokens that are scored at most; none: all."""
    batch_size: int = 8
    """Windows evaluated at once."""
    speed_rounds: int = 5
    """Interleaved rounds of the forward-speed measurement; their median counts."""
    prompts: tuple[str, ...] = ()
    """Prompts of the samples in the report; none: beginnings of validation documents."""
    sample_tokens: int = 60
    """Tokens generated for each sample."""

    def _problems(self) -> list[str]:
        found = _at_least(self, 1, "batch_size", "speed_rounds", "sample_tokens")
        for name, low in (("sequence_length", 2), ("stride", 1), ("max_tokens", 1)):
            if getattr(self, name) is not None:
                found += _at_least(self, low, name)
        length, stride = self.sequence_length, self.stride
        if length is not None and stride is not None and stride > length:
            found.append(f"stride {stride} must not exceed sequence_length {length}")
        return found


@dataclass(frozen=True)
class Mesh(_Checked):
    """How the devices are laid out; at most one axis may be -1, which takes what is left."""

    data: int = -1
    """Copies of the model, each with its own part of the batch."""
    fsdp: int = 1
    """Devices that share each copy's parameters and also split its batch."""
    tensor: int = 1
    """Devices that split each layer's matrices."""

    def _problems(self) -> list[str]:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        found = [f"{n} must be -1 or at least 1, found {s}" for n, s in sizes.items() if s < 1 and s != -1]
        if list(sizes.values()).count(-1) > 1:
            found.append("only one of data, fsdp, tensor may be -1")
        return found


@dataclass(frozen=True)
class Pretrain(_Checked):
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
    mesh: Mesh = field(default_factory=Mesh)
    """Device layout."""


@dataclass(frozen=True)
class Compress(_Checked):
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
    distill: Distill = field(default_factory=Distill)
    """What the student learns from."""
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
            if most > shape.layers:
                found.append(f"student.layers {kept} asks for more than the teacher's {shape.layers} layers")
        return found


def to_dict(config: Compress | Pretrain) -> dict:
    """The config as plain JSON values, with its type's name under `kind`."""
    return {"kind": type(config).__name__, **dataclasses.asdict(config)}
