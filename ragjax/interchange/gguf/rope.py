"""Rotary positions as GGUF has them: neighbours as the pairs, and a factor for each frequency."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from ragjax.errors import InputError
from ragjax.interchange.layout import TRANSPOSED, Packing
from ragjax.models.decoder_config import Rotary, RotaryScaling
from ragjax.models.rotary import frequencies

FACTORS = "rope_freqs.weight"
"""The tensor of what each frequency is divided by."""

_ORIGINAL_POSITIONS = 8192
"""Of every Llama whose frequencies are scaled so."""


def interleaved(heads: int) -> Packing:
    """How weights and biases of queries or keys are stored: neighbours of a head are the pairs.

    Args:
      heads: how many there are.
    """

    def unpack(tensor: np.ndarray, count: int) -> list[np.ndarray]:
        pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
        return TRANSPOSED.unpack(pairs.swapaxes(1, 2).reshape(tensor.shape), count)

    def pack(parts: list[np.ndarray]) -> np.ndarray:
        tensor = TRANSPOSED.pack(parts)
        halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    return Packing(unpack, pack)


def factors(rotary: Rotary, head_width: int) -> Float[np.ndarray, " pairs"]:
    """What the frequencies of `rotary` were divided by."""
    width = rotary.width or head_width
    return frequencies(replace(rotary, scaling=None), width) / frequencies(rotary, width)


def scaling_of(found: Float[np.ndarray, " pairs"], base: float) -> RotaryScaling | None:
    """The scaling that divides frequencies so; none where it leaves them.

    Args:
      found: the factors of a file.
      base: of the frequencies.

    Raises:
      InputError: no scaling that is known does.
    """
    if np.all(found == 1):
        return None
    scaling = RotaryScaling("llama3", round(float(found.max()), 3), original_positions=_ORIGINAL_POSITIONS)
    if np.allclose(factors(Rotary(base, None, scaling), 2 * len(found)), found, rtol=1e-4):
        return scaling
    raise InputError(
        f"{FACTORS} divides the rotary frequencies otherwise than Llama 3 does (low_freq_factor "
        f"{scaling.low_frequency_factor:g}, high_freq_factor {scaling.high_frequency_factor:g}, "
        f"{_ORIGINAL_POSITIONS} positions), which is not supported: give the model as a Hugging Face folder."
    )
