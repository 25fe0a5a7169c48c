"""GGUF files, the format of llama.cpp: in and out."""

from ragjax.interchange.gguf.read import gguf_tokenizer, read_gguf
from ragjax.interchange.gguf.write import write_gguf

__all__ = ["gguf_tokenizer", "read_gguf", "write_gguf"]
