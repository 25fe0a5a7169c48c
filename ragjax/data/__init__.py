"""Text sources, tokenized and cached, packed into seeded batches."""

from ragjax.data.batches import Batch, Batches
from ragjax.data.corpus import Corpus, open_corpora, open_corpus
from ragjax.data.sources import Split, documents, training_split
from ragjax.data.tokenizer import fingerprint, save_tokenizer, train_tokenizer

__all__ = [
    "Batch",
    "Batches",
    "Corpus",
    "Split",
    "documents",
    "fingerprint",
    "open_corpora",
    "open_corpus",
    "save_tokenizer",
    "train_tokenizer",
    "training_split",
]
