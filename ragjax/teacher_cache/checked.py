"""Whether a cache is of the text, the teacher and the losses of a training."""

from __future__ import annotations

import numpy as np

from ragjax.config import Distill
from ragjax.config.distill import values
from ragjax.data.batches import Batches
from ragjax.errors import InputError, listing
from ragjax.teacher_cache.read import TeacherCache


def check_cache(
    cache: TeacherCache,
    *,
    text: str,
    teacher: str,
    batches: Batches,
    steps: int,
    distill: Distill,
) -> None:
    """Refuses a cache that does not fit a training.

    Args:
      cache: the cache.
      text: digest of the training's text.
      teacher: digest of its teacher.
      batches: what it reads.
      steps: how many batches of that.
      distill: its losses.

    Raises:
      InputError: names all that differs.
    """
    held = cache.manifest.held
    pairs = {
        "the text (its source, split, tokenizer or packing)": (held.text[:12], text[:12]),
        "the teacher (its parameters or config)": (held.teacher[:12], teacher[:12]),
        "data.sequence_length": (held.sequence_length, batches.sequence_length),
        "data.isolate_documents": (held.isolate_documents, batches.isolate_documents),
        "distill.temperature": (held.kept.temperature, values(distill.temperature)[0]),
    }
    found = [f"{name}: {there} there, {here} now" for name, (there, here) in pairs.items() if there != here]
    if not found:
        needed = batches.visited(steps)
        lacking = int((~np.isin(needed, cache.windows)).sum())
        if lacking:
            found.append(
                f"it holds {len(cache.windows)} of the text's {held.windows} sequences, and {lacking} of the "
                f"{len(needed)} that are read now are not among them (of another seed, or of fewer steps)"
            )
    if held.kept.kind == "drawn" and (others := [n for n in distill.divergences if n != "forward_kl"]):
        asking = ", ".join(f"distill.{name}" for name in others)
        found.append(f"draws give forward_kl alone, found {asking}")
    if found:
        raise InputError(
            f"The teacher's cache {cache.folder} does not fit this training:\n{listing(found)}\n"
            "Change the config, or write another with `ragjax cache-teacher CONFIG OUT`."
        )
