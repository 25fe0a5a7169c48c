"""A graph in onnxruntime, bound to buffers that hold the keys and values of a batch of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ragjax.onnx_model import OnnxModel

_CHUNK = 512
"""Tokens that are read at once of a longer prompt: attention holds as many scores for each of its keys."""


class Network:
    """Reads prompts into the rows of its buffers, and goes on from there a token at a time.

    The graph writes into the buffers it reads from, so that a step copies none of them. Each text stands
    at the beginning of its row; what a row holds behind it is overwritten before it is seen.
    """

    def __init__(self, model: OnnxModel, *, batch: int, room: int):
        """Makes empty buffers.

        Args:
          model: an open model.
          batch: rows.
          room: tokens that a row holds.
        """
        self._session, self._batch = model.session, batch
        self._buffers: dict[str, np.ndarray] = {}
        for given in self._session.get_inputs():
            prefix, _, name = given.name.partition(".")
            if prefix == "past_key_values":
                _, heads, _, width = given.shape
                self._buffers[name] = np.zeros((batch, heads, room, width), np.float32)
        self._tokens, self._lengths = np.zeros((batch, 1), np.int32), np.zeros(batch, np.int32)
        self._scores = np.zeros((batch, model.config.vocab_size), np.float32)
        self._step = self._bound(slice(0, batch), self._tokens, self._lengths, self._scores)

    def read(self, prompts: Sequence[Sequence[int]]) -> Float[np.ndarray, "batch vocab"]:
        """Begins all rows with prompts: scores of the token after each."""
        longest = max(map(len, prompts))
        if longest > _CHUNK:
            return np.concatenate([self.read_row(row, prompt) for row, prompt in enumerate(prompts)])
        tokens = np.zeros((self._batch, longest), np.int32)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        return self._run_once(slice(0, self._batch), tokens, lengths)

    def read_row(self, row: int, prompt: Sequence[int]) -> Float[np.ndarray, "1 vocab"]:
        """Begins one row with a prompt, while the others stay: scores of the token after it."""
        tokens, scores = np.array([prompt], np.int32), np.empty((0, 0), np.float32)
        for start in range(0, len(prompt), _CHUNK):
            part = np.ascontiguousarray(tokens[:, start : start + _CHUNK])
            lengths = np.array([start + part.shape[1]], np.int32)
            scores = self._run_once(slice(row, row + 1), part, lengths)
        return scores

    def feed(
        self, tokens: Int[np.ndarray, " batch"], lengths: Int[np.ndarray, " batch"]
    ) -> Float[np.ndarray, "batch vocab"]:
        """Feeds a token to each row: scores of the next one, valid until the next call.

        Args:
          tokens: one of each row.
          lengths: how many tokens each row then has; a row that does not count may be given again as it was.
        """
        self._tokens[:, 0], self._lengths[:] = tokens, lengths
        self._session.run_with_iobinding(self._step)
        return self._scores

    def _run_once(self, rows: slice, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        scores = np.zeros((rows.stop - rows.start, self._scores.shape[1]), np.float32)
        self._session.run_with_iobinding(self._bound(rows, tokens, lengths, scores))
        return scores

    def _bound(self, rows: slice, tokens: np.ndarray, lengths: np.ndarray, scores: np.ndarray) -> Any:
        """A call of the graph in which every array is read and written where it lies."""
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        binding.bind_ortvalue_input("tokens", OrtValue.ortvalue_from_numpy(tokens))
        binding.bind_ortvalue_input("lengths", OrtValue.ortvalue_from_numpy(lengths))
        binding.bind_ortvalue_output("logits", OrtValue.ortvalue_from_numpy(scores))
        for name, buffer in self._buffers.items():
            value = OrtValue.ortvalue_from_numpy(buffer[rows])
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        return binding
