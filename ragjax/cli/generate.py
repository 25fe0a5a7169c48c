"""The verb `generate`."""

from __future__ import annotations

import tyro

from ragjax.cli import dataset
from ragjax.cli.arguments import ModelName


def run(given: list[str]) -> None:
    """Does `ragjax generate`, given the words that follow it."""
    if any(word.partition("=")[0] == "--dataset" for word in given):
        dataset.run(given)
        return
    tyro.cli(_generate, args=given, prog="ragjax generate")


def _generate(
    model: ModelName,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
) -> None:
    """Continue a prompt, printing tokens as they come.

    With --dataset OUT.jsonl it completes the prompts of a source, and writes a corpus:
    ragjax generate --dataset --help tells more.

    Args:
        prompt: The text to continue.
        max_new_tokens: Tokens to add at most.
        temperature: 0 takes the likeliest token; higher is more varied.
        seed: Of the random choices, where temperature is above 0.
    """
    from ragjax.generation import stream
    from ragjax.interchange.folder import load
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    loaded = load(model)
    pieces = stream(loaded, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
