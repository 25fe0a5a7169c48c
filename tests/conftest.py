"""Shared fixtures: tiny models, and eight simulated devices to shard them over."""

import os
import tempfile
from pathlib import Path

# Before JAX starts its backends.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "ragjax-test-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

from ragjax.model import Model  # noqa: E402
from ragjax.models.decoder import init_params  # noqa: E402
from ragjax.models.decoder_config import DecoderConfig  # noqa: E402


@pytest.fixture(scope="session")
def tiny_config() -> DecoderConfig:
    """Three layers of width 32 over 300 tokens (padded to 384)."""
    return DecoderConfig(
        vocab_size=300, positions=64, width=32, layers=3, heads=4, mlp_width=128, initializer_range=0.1
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config) -> Model:
    """A random model of `tiny_config` without a tokenizer."""
    return Model(tiny_config, init_params(tiny_config, seed=0))
