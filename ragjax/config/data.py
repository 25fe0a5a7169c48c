"""Text: where it comes from, and how it is cut."""

from __future__ import annotations

from dataclasses import dataclass

from ragjax.config.checked import Checked, at_least


@dataclass(frozen=True)
class Data(Checked):
    """Where the text comes from and how it is cut into sequences."""

    train: str = "builtin:python"
    """Source URI: builtin:python, text:GLOB, jsonl:PATH#field, tfds:NAME/split#field, hf:NAME; with two
    fields, #prompt,completion, one of pairs, of which the completion is learned."""
    validation: str | None = None
    """Source URI held out for evaluation; none: the source's own split, by document."""
    sequence_length: int = 128
    """Tokens in a training sequence."""
    tokenizer: str | None = None
    """MODEL whose tokenizer is used; none: the teacher's, or one trained here on `train`."""
    vocab_size: int = 2048
    """Size of a tokenizer trained here."""
    isolate_documents: bool = False
    """Forbid attention across the documents packed into one sequence."""
    fixed_cuts: bool = False
    """Cut the text at the same places in every epoch, as a cached teacher needs it."""
    pack_pairs: bool = False
    """Put several pairs of prompt and completion into a sequence, where they do not see each other."""
    cache: str | None = None
    """Folder of the token cache; none: RAGJAX_CACHE or ~/.cache/ragjax."""

    def _problems(self) -> list[str]:
        found = at_least(self, 2, "sequence_length") + at_least(self, 257, "vocab_size")
        return found + ([] if self.train else ["train must name a source, found an empty string"])
