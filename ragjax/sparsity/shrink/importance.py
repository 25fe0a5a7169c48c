"""The criteria by which parts stay: a later one is one function and one line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ragjax.models.decoder import Params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.sparsity.calibrated.calibration import Calibration
from ragjax.sparsity.shrink.activation_importance import activation
from ragjax.sparsity.shrink.progress import Progress
from ragjax.sparsity.shrink.selection import Importance
from ragjax.sparsity.shrink.taylor_importance import taylor
from ragjax.sparsity.shrink.weight_importance import magnitude, random


class Subject(NamedTuple):
    """What a criterion may look at."""

    config: DecoderConfig
    params: Params
    calibration: Calibration | None = None
    """The text, and the devices that share it; none where the criterion reads none."""
    seed: int = 0


class Criterion(NamedTuple):
    """A way to tell important parts from others."""

    reads_text: bool
    measure: Callable[[Subject, Progress], Importance]


def _text(subject: Subject) -> Calibration:
    assert subject.calibration is not None
    return subject.calibration


IMPORTANCE: dict[str, Criterion] = {
    "activation": Criterion(True, lambda s, told: activation(s.config, s.params, _text(s), told)),
    "taylor": Criterion(True, lambda s, told: taylor(s.config, s.params, _text(s), told)),
    "magnitude": Criterion(False, lambda s, told: magnitude(s.config, s.params)),
    "random": Criterion(False, lambda s, told: random(s.config, s.seed)),
}
"""By the name in a config."""
