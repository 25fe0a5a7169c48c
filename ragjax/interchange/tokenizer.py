"""The tokenizer that lies beside a model, checked against its vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ragjax.errors import InputError
from ragjax.interchange.json_file import read_object
from ragjax.interchange.resolve import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
_FILES = (*_VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_tokenizer(folder: Path, model_type: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a Hugging Face folder; none where the folder has no file of one.

    Args:
      folder: the model's folder.
      model_type: the model's `model_type`, which older folders name their tokenizer by.

    Raises:
      InputError: its files cannot be read, or are not all there.
    """
    found = [name for name in _FILES if (folder / name).is_file()]
    if not found:
        return None
    from transformers import AutoTokenizer, GPT2Config
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    # transformers asks the model's type for a tokenizer that does not name its own class.
    config = None if model_type in CONFIG_MAPPING else GPT2Config()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises plain Exception
        first = str(error).strip().split("\n")[0]
        raise InputError(
            f"{folder}: its tokenizer ({', '.join(found)}) cannot be read: {type(error).__name__}: {first}"
        ) from error
    # Where the vocabulary is missing, transformers gives a tokenizer of one token and says nothing.
    if len(tokenizer) <= 1:
        raise InputError(
            f"{folder}: its tokenizer knows {len(tokenizer)} token(s): one of {', '.join(_VOCABULARIES)} was "
            f"expected to hold a vocabulary, found {', '.join(found)}. Copy the missing files, or remove "
            "these to load the model without a tokenizer."
        )
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuses a tokenizer that belongs to another model.

    Args:
      tokenizer: a tokenizer.
      vocab_size: tokens the model knows.

    Raises:
      InputError: it has ids the model does not know, or fewer than half as many tokens.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens with ids up to {largest}, the model knows "
            f"{vocab_size} tokens: use the tokenizer the model was trained with, or drop those added to it."
        )
    if 2 * len(tokenizer) < vocab_size:
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens, the model knows {vocab_size}: it is not the one the "
            "model was trained with."
        )


def load_tokenizer(model: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of MODEL, or of a folder that holds nothing but a tokenizer.

    Raises:
      InputError: there is no such folder or model, or it has no tokenizer.
    """
    folder = Path(model).expanduser()
    if not any((folder / name).is_file() for name in _FILES):
        folder = resolve(model)
    if folder.is_file():
        from ragjax.interchange.gguf import gguf_tokenizer

        return gguf_tokenizer(folder)
    config = folder / "config.json"
    values = read_object(config) if config.is_file() else {}
    tokenizer = read_tokenizer(folder, str(values.get("model_type", "gpt2")))
    if tokenizer is None:
        raise InputError(f"{folder} has no tokenizer: one of {', '.join(_VOCABULARIES)} was expected there.")
    return tokenizer
