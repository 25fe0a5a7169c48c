"""Text from prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ragjax.data.tokenizer import encode_prompts
from ragjax.generation.decoding import Settings, State, decode, prefill, unstack
from ragjax.generation.detokenize import text_pieces
from ragjax.generation.prompts import align, bucket, complete, end_tokens, tokenizer_of
from ragjax.generation.sampling import keys_of
from ragjax.model import Model
from ragjax.parallel.hosts import to_host


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    stop_at_eos: bool = True,
) -> list[str]:
    """Continues each prompt.

    Prompts of any lengths go through one batch; their lengths and `max_new_tokens` are rounded up
    to powers of two, so that a later call of like size compiles nothing.

    Args:
      model: a model with a tokenizer.
      prompts: texts; an empty one starts a new text.
      max_new_tokens: longest continuation, in tokens.
      temperature: 0 takes the likeliest token, above it one is drawn from softmax(logits / temperature).
      seed: of the draws; a prompt at one place in the list draws the same whatever the others are.
      stop_at_eos: end a continuation at the end-of-text token; else go on to `max_new_tokens`.

    Returns:
      What follows each prompt, without the prompt.

    Raises:
      InputError: no tokenizer, or prompts that do not fit the model's positions.

    Example:
      >>> from ragjax.data import train_tokenizer
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> config = DecoderConfig(vocab_size=300, positions=32, width=16, layers=1, heads=2, mlp_width=32)
      >>> tokenizer = train_tokenizer(["some text to learn from"], vocab_size=300)
      >>> model = Model(config, init_params(config, seed=0), tokenizer)
      >>> [text] = generate(model, ["some text"], max_new_tokens=4, stop_at_eos=False)
      >>> text == generate(model, ["some text"], max_new_tokens=4, stop_at_eos=False)[0]
      True
    """
    tokenizer = tokenizer_of(model)
    ids = encode_prompts(tokenizer, prompts)
    answers = generate_tokens(
        model, ids, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, stop_at_eos=stop_at_eos
    )
    return [
        "".join(text_pieces(tokenizer, answer.tolist(), prompt=prompt))
        for answer, prompt in zip(answers, ids, strict=True)
    ]


def generate_tokens(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    stop_at_eos: bool = True,
    rows: Sequence[int] | None = None,
) -> list[Int[np.ndarray, " new"]]:
    """`generate` from token ids to token ids.

    Args:
      model: a model; the rest as in `generate`.
      prompts: token ids.
      max_new_tokens: longest continuation, in tokens.
      temperature: of the draws.
      seed: of the draws.
      stop_at_eos: end a continuation at the end-of-text token.
      rows: numbers by which the prompts draw, whatever batch each of them comes in; none: their places in
        the list.

    Returns:
      The new tokens of each prompt, with the end-of-text token where one came.

    Raises:
      InputError: prompts that do not fit the model's vocabulary or positions.
    """
    if not prompts:
        return []
    ready = complete(model, prompts, max_new_tokens=max_new_tokens, temperature=temperature)
    ends = end_tokens(model) if stop_at_eos else ()
    settings = _settings(model, temperature, seed, ends)
    if rows is not None:
        settings = settings._replace(key=keys_of(settings.key, jnp.asarray(rows)))
    state = _begin(model, ready, max_new_tokens, settings)
    layers = unstack(model.params, config=model.config)
    state = decode(model.params, layers, state, jnp.int32(max_new_tokens), settings, config=model.config)
    tokens, step = to_host((state.tokens, state.step))
    return [_to_end(row, ends) for row in tokens[:, : int(step)]]


def stream(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    stop_at_eos: bool = True,
) -> Iterator[str]:
    """Continues one prompt piece by piece, in whole characters.

    The pieces together are what `generate` returns for `[prompt]` with the same arguments, and the
    programs are the same.

    Returns:
      An iterator over the pieces; each is computed when it is asked for.

    Raises:
      InputError: as `generate`, at once.
    """
    tokenizer = tokenizer_of(model)
    (ids,) = encode_prompts(tokenizer, [prompt])
    (ready,) = complete(model, [ids], max_new_tokens=max_new_tokens, temperature=temperature)
    ends = end_tokens(model) if stop_at_eos else ()

    def tokens() -> Iterator[int]:
        settings = _settings(model, temperature, seed, ends)
        state = _begin(model, [ready], max_new_tokens, settings)
        layers = unstack(model.params, config=model.config)
        for step in range(1, max_new_tokens + 1):
            state = decode(model.params, layers, state, jnp.int32(step), settings, config=model.config)
            token = int(to_host(state.tokens)[0, step - 1])
            yield token
            if token in ends:
                return

    return text_pieces(tokenizer, tokens(), prompt=ids)


def _begin(model: Model, prompts: list[list[int]], max_new_tokens: int, settings: Settings) -> State:
    aligned = align(prompts, positions=model.config.positions)
    room = bucket(max_new_tokens, most=model.config.positions)
    return prefill(model.params, *aligned, settings, config=model.config, room=room)


def _settings(model: Model, temperature: float, seed: int, ends: tuple[int, ...]) -> Settings:
    # As long with `stop_at_eos` as without, so that both are one program.
    eos = np.full(max(1, len(end_tokens(model))), -1, np.int32)
    eos[: len(ends)] = ends
    return Settings(jnp.float32(temperature), jax.random.key(seed), jnp.asarray(eos))


def _to_end(tokens: np.ndarray, ends: tuple[int, ...]) -> np.ndarray:
    """`tokens` up to and with the first that ends a text."""
    found = np.flatnonzero(np.isin(tokens, ends))
    return tokens[: found[0] + 1] if len(found) else tokens
