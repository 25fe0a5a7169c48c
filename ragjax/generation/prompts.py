"""Prompts as a user gives them, made ready for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from ragjax.config import Decoding
from ragjax.errors import InputError, listing
from ragjax.models.decoder_config import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 8


class Prompts(NamedTuple):
    """Prompts flush right in one array."""

    tokens: Int[np.ndarray, "batch length"]
    padding: Int[np.ndarray, " batch"]
    """Places before each prompt."""


class Described(Protocol):
    """A model, whatever runs it."""

    @property
    def config(self) -> DecoderConfig: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None: ...


def tokenizer_of(model: Described) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
      InputError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise InputError(
            "Generating text needs a model with a tokenizer, found one without: "
            "load one that has tokenizer files, or generate from token ids."
        )
    return model.tokenizer


def end_tokens(model: Described) -> tuple[int, ...]:
    """Ids of the tokens that end a text: the config's, else the tokenizer's; may be empty."""
    eos = model.config.eos_token
    if eos is None and model.tokenizer is not None:
        eos = model.tokenizer.eos_token_id
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def start_token(model: Described) -> int | None:
    """Id of the token that begins a text: bos, else eos."""
    if model.config.bos_token is not None:
        return model.config.bos_token
    if model.tokenizer is not None and model.tokenizer.bos_token_id is not None:
        return model.tokenizer.bos_token_id
    return next(iter(end_tokens(model)), None)


def complete(model: Described, prompts: Sequence[Sequence[int]], options: Decoding) -> list[list[int]]:
    """Checks a request; prompts that are empty get the token that begins a text.

    Raises:
      InputError: names every prompt and option that does not fit the model.
    """
    start, config = start_token(model), model.config
    problems, max_new_tokens = [], options.max_new_tokens
    foreign = [token for token in options.stop_tokens if not 0 <= token < config.vocab_size]
    if foreign:
        problems.append(f"stop_tokens holds {foreign[:5]}, the vocabulary ends at {config.vocab_size - 1}")
    if (options.log_probs or 0) > config.vocab_size:
        problems.append(f"log_probs is {options.log_probs}, the vocabulary has {config.vocab_size} tokens")
    ready = []
    for number, prompt in enumerate(prompts):
        ids = [int(token) for token in prompt]
        if not ids and start is not None:
            ids = [start]
        ready.append(ids)
        strange = [token for token in ids if not 0 <= token < config.vocab_size]
        if not ids:
            problems.append(
                f"prompt {number} is empty, and the model has no token that begins a text: "
                "give at least one token"
            )
        elif strange:
            problems.append(
                f"prompt {number} holds {strange[:5]}, the vocabulary ends at {config.vocab_size - 1}"
            )
        elif len(ids) + max_new_tokens > config.positions:
            left = config.positions - len(ids)
            remedy = f"ask for at most {left} new tokens" if left > 0 else "shorten it"
            problems.append(
                f"prompt {number} has {len(ids)} tokens and {max_new_tokens} new ones make "
                f"{len(ids) + max_new_tokens}, the model has {config.positions} positions: {remedy}"
            )
    if problems:
        raise InputError(f"Cannot generate:\n{listing(problems)}")
    return ready


def bucket(size: int, *, most: int) -> int:
    """`size` rounded up to a power of two, at least 8 and at most `most`: few programs serve all sizes."""
    return min(max(_SHORTEST, 1 << (size - 1).bit_length()), most)


def align(prompts: Sequence[Sequence[int]], *, positions: int) -> Prompts:
    """Prompts flush right in an array as long as the bucket of the longest."""
    length = bucket(max(map(len, prompts)), most=positions)
    tokens = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[length - len(prompt) :] = prompt
    return Prompts(tokens, np.array([length - len(prompt) for prompt in prompts], np.int32))
