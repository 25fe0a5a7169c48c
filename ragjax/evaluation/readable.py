"""Whether a text can be measured on, told before the work."""

from __future__ import annotations

from ragjax.data.corpus import open_corpus
from ragjax.errors import InputError
from ragjax.model import Model


def check_readable(data: str, model: Model) -> None:
    """Opens and encodes a text, which is then there to be measured on.

    Args:
      data: source URI.
      model: whose tokenizer reads it.

    Raises:
      InputError: the model has no tokenizer, or the source cannot be read.
    """
    if model.tokenizer is None:
        raise InputError(f"--data {data} cannot be read: the model has no tokenizer.")
    open_corpus(data, None, model.tokenizer)
