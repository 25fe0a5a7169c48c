"""Text from prompts: KV cache, sampling, beams, drafts, streaming."""

from ragjax.config import Decoding
from ragjax.generation.continuation import Continuation, continuations, generate, generate_tokens, stream
from ragjax.generation.drafted import Speculation

__all__ = [
    "Continuation",
    "Decoding",
    "Speculation",
    "continuations",
    "generate",
    "generate_tokens",
    "stream",
]
