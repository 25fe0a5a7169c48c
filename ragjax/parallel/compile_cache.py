"""Compiled programs, kept on disk from run to run."""

from __future__ import annotations

import jax

from ragjax.cache_folder import cache_folder


def keep_compiled_programs() -> None:
    """Makes JAX keep what it compiles in the cache folder, unless the user has said where; call it first."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
