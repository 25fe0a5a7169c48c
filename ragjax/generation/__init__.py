"""Text from prompts: KV cache, sampling, streaming."""

from ragjax.generation.continuation import generate, generate_tokens, stream

__all__ = ["generate", "generate_tokens", "stream"]
