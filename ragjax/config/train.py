"""One training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ragjax.config.checked import Checked, at_least, below_one

RateSchedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw", "lion", "adafactor", "sgd"]
Dtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "dots", "full"]


@dataclass(frozen=True)
class Train(Checked):
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
        found = at_least(
            self, 1, "steps", "batch_size", "accumulate", "max_bad_steps", "log_every", "checkpoint_every"
        )
        found += at_least(self, 0, "warmup", "weight_decay", "clip", "evaluate_every", "final_rate")
        found += at_least(self, 2, "keep") + below_one(self, "b1", "b2")
        if not self.learning_rate > 0:
            found.append(f"learning_rate must be above 0, found {self.learning_rate!r}")
        if self.accumulate > 0 and self.batch_size % self.accumulate:
            found.append(f"batch_size {self.batch_size} must be divisible by accumulate {self.accumulate}")
        if self.warmup >= self.steps:
            found.append(f"warmup must be below steps, found {self.warmup} and {self.steps}")
        return found
