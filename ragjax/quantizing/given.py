"""What a method of quantization works on, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from ragjax.config import Quantize
from ragjax.model import Model
from ragjax.models.decoder import Params
from ragjax.quantization.scheme import Scheme


class Given(NamedTuple):
    """What a method works on; checked."""

    model: Model
    """In floats; left as it is."""
    names: tuple[str, ...]
    """The kernels that are to be quantized, as in 'layers/mlp/up/kernel'."""
    scheme: Scheme
    config: Quantize
    mesh: Mesh | None
    """Devices that share the work."""
    cache: str | Path | None
    """Folder of the token cache."""
    unfinished: str | Path | None
    """Folder in which blocks are kept as they are done; none: they are not."""
    within: AbstractContextManager[Any] | None
    """Entered while blocks are quantized; none: nothing is."""
    progress: Callable[[str], None]
    """Told of each part that is done, a line."""
    after_block: Callable[[int, int], None]
    """Told after each block, by a method that goes block by block, how many are done, and of how many."""


class Made(NamedTuple):
    """What a method made."""

    params: Params
    """With quantized kernels, and whatever else had to change with them."""
    errors: dict[str, tuple[float, ...]]
    """Of each kernel, one for each layer: what `of` says."""
    of: str
    """What the errors are errors of, relative to its own size."""
    before: float = 0
    """Seconds that went into parts which an earlier call had done."""


Method = Callable[[Given], Made]
