"""Fixtures of the tests of generation."""

import jax
import pytest


@pytest.fixture
def compiled():
    """Counts what XLA compiles."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)
