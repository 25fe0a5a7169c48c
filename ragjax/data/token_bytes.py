"""What each token writes, in bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes] | None:
    """The bytes each token writes, by id; None for tokenizers whose tokens do not tell them.

    Byte-level BPE spells every byte as one printable character. SentencePiece with byte fallback spells
    a space as U+2581, and has tokens such as <0x0A> for bytes it has no other piece for.

    Reference: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.2; Kudo
    and Richardson, "SentencePiece", https://arxiv.org/abs/1808.06226
    """
    vocabulary = tokenizer.get_vocab()
    spelled = _byte_level(vocabulary) or _byte_fallback(vocabulary)
    if spelled is None:
        return None
    pieces = [b""] * (1 + max(vocabulary.values()))
    added = tokenizer.get_added_vocab()
    try:
        for name, token in vocabulary.items():
            pieces[token] = name.encode() if name in added else spelled(name)
    except KeyError:
        return None
    return pieces


def _byte_level(vocabulary: Mapping[str, int]) -> Callable[[str], bytes] | None:
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    spelled = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    if not spelled.keys() <= vocabulary.keys():
        return None
    return lambda name: bytes(spelled[character] for character in name)


def _byte_fallback(vocabulary: Mapping[str, int]) -> Callable[[str], bytes] | None:
    spelled = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    if not spelled.keys() <= vocabulary.keys():
        return None
    return lambda name: spelled.get(name) or name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()
