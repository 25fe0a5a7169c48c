"""Text from prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ragjax.config import Decoding
from ragjax.data.tokenizer import encode_prompts
from ragjax.errors import InputError
from ragjax.generation.beam import Rules, beam_search
from ragjax.generation.drafted import DraftedWriter, Speculation, check_draft
from ragjax.generation.log_probs import LogProbs
from ragjax.generation.network import laid_out
from ragjax.generation.onnx import OnnxWriter, check_onnx
from ragjax.generation.prompts import Described, tokenizer_of
from ragjax.generation.request import Request, request
from ragjax.generation.transcript import Ended, Transcript
from ragjax.generation.writer import ModelWriter, Writer, log_prob_rows
from ragjax.model import Model
from ragjax.onnx_model import OnnxModel
from ragjax.parallel.hosts import to_host

_TOKENS_BETWEEN_LOOKS = 16
"""How far the device writes before the host looks for stop strings."""
_SECONDS_BETWEEN_LOOKS = 0.15
"""How long a reader waits for more, where tokens come faster than that; what the reader takes counts. Several
texts, which nobody reads as they come, wait twice as long: a look costs a millisecond or two."""


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt."""

    tokens: Int[np.ndarray, " new"]
    """New token ids, the one that ended the text included."""
    text: str | None
    """Their text, up to a stop string; none where the model has no tokenizer."""
    ended: Ended
    """Why the text ends."""
    log_probs: Float[np.ndarray, " new"] | None = None
    """Of each token under the model itself, where asked for."""
    alternatives: list[dict[int, float]] | None = None
    """In place of each token, the likeliest ones and their log-probs, likeliest first."""
    score: float | None = None
    """Of a beam: its log-probability over a power of its length."""
    speculation: Speculation | None = None
    """How the draft did, over all prompts of the call; none without a draft."""


def continuations(
    model: Model | OnnxModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    options: Decoding | None = None,
    *,
    draft: Model | None = None,
    mesh: jax.sharding.Mesh | None = None,
    rows: Sequence[int] | None = None,
    on_text: Callable[[int, str], None] | None = None,
    **fields: Any,
) -> list[Continuation]:
    """Continues each prompt, and tells what there is to know of it.

    Prompts of any lengths go through one batch; their lengths and the number of new tokens are rounded
    up to powers of two, so that a later call of like size compiles nothing, whatever its options. The
    tokens are written by one loop on the device; the host looks in between only where there are stop
    strings, or where text is handed on as it comes.

    Args:
      model: a model, in JAX or in onnxruntime; with a tokenizer, where prompts are texts or there are stop
        strings.
      prompts: texts, or token ids; an empty one starts a new text.
      options: how tokens are chosen, and when a text ends.
      draft: a faster model of the same vocabulary, which proposes tokens that `model` then reads at
        once; what is written is the model's own. None: the model alone.
      mesh: devices over which parameters, batch and heads are split; none: one device.
      rows: numbers by which the prompts draw, whatever batch each of them comes in; none: their places in
        the list.
      on_text: called with the number of a prompt and the piece of text that follows, as pieces come.
      fields: of `Decoding`, over those of `options`.

    Raises:
      InputError: prompts, options or a draft that do not fit the model, or models that do not fit the mesh;
        with a model in onnxruntime also beams, a draft, a mesh.
    """
    decided = _decided(options, fields)
    if not prompts:
        return []
    asked = replace(_asked(model, prompts, decided, draft, mesh), rows=rows)
    if decided.beams > 1 and isinstance(model, Model):
        return _beams(model, asked, on_text)
    transcripts = _transcripts(model, asked)
    writer = writer_for(model, asked, draft=draft)
    (*_, log_probs) = _look(writer, transcripts, asked, on_text)
    told = [_told(transcript, log_probs, row) for row, transcript in enumerate(transcripts)]
    if not isinstance(writer, DraftedWriter):
        return told
    return [replace(each, speculation=writer.speculation) for each in told]


def generate(
    model: Model | OnnxModel,
    prompts: Sequence[str],
    options: Decoding | None = None,
    *,
    draft: Model | None = None,
    mesh: jax.sharding.Mesh | None = None,
    on_text: Callable[[int, str], None] | None = None,
    **fields: Any,
) -> list[str]:
    """The text that follows each prompt.

    Args:
      model: a model with a tokenizer.
      prompts: texts; an empty one starts a new text.
      options: how tokens are chosen, and when a text ends.
      draft: a faster model of the same vocabulary that helps; none: the model alone.
      mesh: devices over which parameters, batch and heads are split; none: one device.
      on_text: called with the number of a prompt and the piece of text that follows, as pieces come.
      fields: of `Decoding`, over those of `options`.

    Returns:
      What follows each prompt, without the prompt; `continuations` tells more.

    Raises:
      InputError: no tokenizer; or as `continuations`.

    Example:
      >>> from ragjax.data import train_tokenizer
      >>> from ragjax.models.decoder import init_params
      >>> from ragjax.models.decoder_config import DecoderConfig
      >>> config = DecoderConfig(vocab_size=300, positions=32, width=16, layers=1, heads=2, mlp_width=32)
      >>> tokenizer = train_tokenizer(["some text to learn from"], vocab_size=300)
      >>> model = Model(config, init_params(config, seed=0), tokenizer)
      >>> [text] = generate(model, ["some text"], max_new_tokens=4, stop_at_eos=False)
      >>> text == generate(model, ["some text"], Decoding(max_new_tokens=4, stop_at_eos=False))[0]
      True
    """
    tokenizer_of(model)
    told = continuations(model, prompts, options, draft=draft, mesh=mesh, on_text=on_text, **fields)
    return [each.text or "" for each in told]


def generate_tokens(
    model: Model | OnnxModel,
    prompts: Sequence[Sequence[int]],
    options: Decoding | None = None,
    *,
    draft: Model | None = None,
    mesh: jax.sharding.Mesh | None = None,
    rows: Sequence[int] | None = None,
    **fields: Any,
) -> list[Int[np.ndarray, " new"]]:
    """`generate` from token ids to token ids.

    Returns:
      The new tokens of each prompt, with the one that ends the text where one came.

    Raises:
      InputError: as `continuations`.
    """
    told = continuations(model, prompts, options, draft=draft, mesh=mesh, rows=rows, **fields)
    return [each.tokens for each in told]


def stream(
    model: Model | OnnxModel,
    prompt: str,
    options: Decoding | None = None,
    *,
    draft: Model | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **fields: Any,
) -> Iterator[str]:
    """Continues one prompt piece by piece, in whole characters.

    The pieces together are what `generate` returns for `[prompt]` with the same arguments, and the
    programs are the same.

    Returns:
      An iterator over the pieces. They come about every 0.15 s, or with every token where tokens are
      slower; meanwhile the device writes ahead, as far as it wrote for the last.

    Raises:
      InputError: as `generate`, at once; or beams, of which none is best before the end.
    """
    decided = _decided(options, fields)
    tokenizer_of(model)
    _refuse_beams(decided)
    asked = _asked(model, [prompt], decided, draft, mesh)

    def pieces() -> Iterator[str]:
        fresh: list[str] = []
        writer, transcripts = writer_for(model, asked, draft=draft), _transcripts(model, asked)
        looks = _look(writer, transcripts, asked, lambda _, piece: fresh.append(piece))
        for _ in looks:
            yield from fresh
            fresh.clear()

    return pieces()


def _decided(options: Decoding | None, fields: dict[str, Any]) -> Decoding:
    return replace(options or Decoding(), **fields)


def _asked(
    model: Model | OnnxModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    options: Decoding,
    draft: Model | None,
    mesh: jax.sharding.Mesh | None,
) -> Request:
    if isinstance(model, OnnxModel):
        check_onnx(options, draft, mesh)
    asked = request(model, _token_ids(model, prompts), options, mesh)
    if draft is not None and isinstance(model, Model):
        check_draft(model, draft, asked)
    return asked


def writer_for(model: Model | OnnxModel, asked: Request, *, draft: Model | None = None) -> Writer:
    """What writes from the prompts of a request, which it has read when it is there.

    Args:
      model: in JAX or in onnxruntime.
      asked: the prompts and how they go on.
      draft: a model that proposes tokens to one in JAX; none: the model alone.
    """
    if isinstance(model, OnnxModel):
        return OnnxWriter(model, asked)
    return ModelWriter(model, asked) if draft is None else DraftedWriter(model, draft, asked)


def _refuse_beams(options: Decoding) -> None:
    if options.beams > 1:
        raise InputError("Beams come whole: the best is not known before the end. Set beams to 1 to stream.")


def _token_ids(model: Described, prompts: Sequence[str] | Sequence[Sequence[int]]) -> list[Sequence[int]]:
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(encode_prompts(tokenizer_of(model), texts) if texts else ())
    return [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]


def _transcripts(model: Described, asked: Request) -> list[Transcript]:
    options = asked.options
    return [
        Transcript(model.tokenizer, prompt, limit=options.max_new_tokens, ends=asked.ends, stop=options.stop)
        for prompt in asked.prompts
    ]


def _look(
    writer: Writer,
    transcripts: list[Transcript],
    asked: Request,
    on_text: Callable[[int, str], None] | None,
) -> Iterator[LogProbs | None]:
    """Lets the writer go on until all texts have ended; yields what is known of their tokens at each look."""
    limit = asked.options.max_new_tokens
    between = _SECONDS_BETWEEN_LOOKS * (1 if len(transcripts) == 1 else 2)
    stride = 1 if on_text else _TOKENS_BETWEEN_LOOKS if asked.options.stop else limit
    going, looked = list(range(len(transcripts))), time.perf_counter()
    while going:
        shortest = min(len(transcripts[row].tokens) for row in going)
        written = writer.write(min(shortest + stride, limit), stride if on_text else 0)
        for row in going:
            transcript = transcripts[row]
            for token in written.tokens[row, len(transcript.tokens) : written.counts[row]].tolist():
                piece = transcript.push(token)
                if piece and on_text:
                    on_text(row, piece)
                if transcript.ended:
                    break
        writer.end([row for row in going if transcripts[row].ended == "stop_string"])
        going = [row for row in going if not transcripts[row].ended]
        # Several hosts launch the same programs, whatever their clocks say.
        if on_text and going and jax.process_count() == 1:
            took, looked = time.perf_counter() - looked, time.perf_counter()
            arrived = min(len(transcripts[row].tokens) for row in going) - shortest
            stride = max(1, min(2 * stride, round(arrived * between / max(took, 1e-6))))
        yield written.log_probs


def _told(transcript: Transcript, log_probs: LogProbs | None, row: int) -> Continuation:
    assert transcript.ended is not None
    tokens = np.array(transcript.tokens, np.int32)
    return Continuation(
        tokens, transcript.text, transcript.ended, *log_prob_rows(log_probs, row, len(tokens))
    )


def _beams(model: Model, asked: Request, on_text: Callable[[int, str], None] | None) -> list[Continuation]:
    """The best beam of each prompt."""
    options, config = asked.options, model.config
    rules = Rules(
        jnp.asarray(asked.eos()),
        jnp.float32(options.length_penalty),
        jnp.bool(options.early_stopping is True),
        jnp.bool(options.early_stopping == "never"),
        jnp.float32(options.repetition_penalty),
    )
    with asked.on_mesh():
        params = asked.placed(model.params)
        found = beam_search(
            *laid_out(params, config=config, mesh=asked.mesh), *asked.aligned(config.positions),
            jnp.int32(options.max_new_tokens), rules, config=config, room=asked.room(config.positions),
            beams=options.beams, spare=max(2, 1 + len(asked.ends)),
            cache_dtype=jnp.dtype(options.cache_dtype),
        )  # fmt: skip
    found = to_host(found)
    told = []
    for row, transcript in enumerate(_transcripts(model, asked)):
        for token in found.tokens[row, 0, : found.lengths[row, 0]].tolist():
            piece = transcript.push(token)
            if piece and on_text:
                on_text(row, piece)
        best = _told(transcript, None, row)
        chosen = found.chosen[row, 0, : len(best.tokens)] if options.log_probs is not None else None
        told.append(replace(best, log_probs=chosen, score=float(found.scores[row, 0])))
    return told
