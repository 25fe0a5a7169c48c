"""What a run reads: the text, and what was kept of a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragjax.config import Compress, Data
from ragjax.data import open_corpora
from ragjax.errors import InputError
from ragjax.model import Model
from ragjax.parallel.agreement import from_writer
from ragjax.teacher_cache import TeacherCache, check_cache, teacher_digest, text_digest
from ragjax.training.fit import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_texts(data: Data, tokenizer: PreTrainedTokenizerBase | None) -> Texts:
    """The tokens to train and to validate on, as a model's tokenizer has them."""
    if tokenizer is None:
        raise InputError("The model has no tokenizer: set data.tokenizer to one of its vocabulary.")
    train, validation = open_corpora(data.train, data.validation, tokenizer, cache=data.cache)
    return Texts(
        train, validation, data.sequence_length, data.isolate_documents, data.fixed_cuts, data.pack_pairs
    )


def open_cache(config: Compress, teacher: Model, texts: Texts) -> TeacherCache:
    """What was kept of the teacher, checked to be of this one and of this text."""
    assert config.teacher.cache is not None
    cache = TeacherCache(config.teacher.cache)
    isolate, pack = texts.isolate_documents, texts.pack_pairs
    check_cache(
        cache,
        text=from_writer(lambda: text_digest(texts.train, isolate_documents=isolate, pack_pairs=pack)),
        teacher=teacher_digest(teacher),
        batches=texts.batches(config.train.batch_size, seed=config.seed),
        steps=config.train.steps,
        distill=config.distill,
    )  # fmt: skip
    return cache
