"""What an architecture costs, in closed form: parameters, and operations a token."""

from __future__ import annotations

from ragjax.models.decoder_config import DecoderConfig


def parameter_count(config: DecoderConfig) -> int:
    """Parameters, without rows that only pad the vocabulary; a tied output projection counts once."""
    tables = 1 if config.tied else 2
    total = tables * config.vocab_size * config.token_width
    if config.embedding_width:
        total += 2 * config.embedding_width * config.width
    if config.learned_positions:
        total += (config.position_offset + config.positions) * config.width
    norm = config.width * (1 if config.norm == "rms" else 2)
    total += norm * config.final_norm
    return total + config.layers * (2 * norm + _attention(config) + _mlp(config))


def flops_per_token(config: DecoderConfig, length: int) -> float:
    """Operations of the forward pass a token: two for each multiplication of a matrix product.

    The scores over the vocabulary count. Attention is counted in full, as most programs compute it: every
    token with all of the sequence, or of its window.

    Args:
      config: the architecture.
      length: tokens in a sequence.
    """
    queries, shared = _head_values(config)
    matrices = config.width * (2 * queries + 2 * shared)
    matrices += config.width * config.mlp_width * (3 if config.gated else 2)
    total = config.layers * matrices + config.vocab_size * config.token_width
    if config.embedding_width:
        total += 2 * config.embedding_width * config.width
    keys = sum(min(window or length, length) for window in config.layer_windows)
    return float(2 * total + 4 * keys * queries)


def _head_values(config: DecoderConfig) -> tuple[int, int]:
    return config.heads * config.head_width, config.key_value_heads * config.head_width


def _attention(config: DecoderConfig) -> int:
    queries, shared = _head_values(config)
    weights = 2 * config.width * (queries + shared)
    return weights + config.attention_bias * (queries + 2 * shared) + config.attention_out_bias * config.width


def _mlp(config: DecoderConfig) -> int:
    inward = 2 if config.gated else 1
    weights = (inward + 1) * config.width * config.mlp_width
    return weights + config.mlp_bias * (inward * config.mlp_width + config.width)
