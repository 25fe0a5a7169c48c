"""The update rules and their learning-rate schedules, by the names in a config."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from ragjax.config import Train


def learning_rate(train: Train) -> optax.Schedule:
    """Learning rate of each optimizer step: linear warm-up to the peak, then the named shape."""
    peak, after = train.learning_rate, max(train.steps - train.warmup, 1)
    shapes = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * train.final_rate, after),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after, train.final_rate),
    }
    # From 1 / (warmup + 1) of the peak, so that no step is spent at a rate of zero.
    warm = optax.linear_schedule(peak / (train.warmup + 1), peak, train.warmup)
    return optax.join_schedules([warm, shapes[train.schedule]()], [train.warmup])


def _matrices(params):
    """True for what is decayed: everything but biases and norms, which are vectors in each layer."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: getattr(path[-1], "key", None) not in ("bias", "scale"), params
    )


def _adamw(train: Train, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, train.b1, train.b2, weight_decay=train.weight_decay, mask=_matrices)


def _lion(train: Train, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(rate, train.b1, train.b2, weight_decay=train.weight_decay, mask=_matrices)


def _adafactor(train: Train, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(train.weight_decay, _matrices),
        optax.scale_by_learning_rate(rate),
    )


def _sgd(train: Train, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(train.b1),
        optax.add_decayed_weights(train.weight_decay, _matrices),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS: dict[str, Callable[[Train, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "lion": _lion,
    "adafactor": _adafactor,
    "sgd": _sgd,
}


def make_optimizer(train: Train) -> optax.GradientTransformation:
    """The update rule `train` names; gradients are clipped by the train step, not here."""
    return OPTIMIZERS[train.optimizer](train, learning_rate(train))
