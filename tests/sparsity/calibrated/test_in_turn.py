"""Programs that run where they are called, which JAX must be told before its first one."""

import subprocess
import sys

import pytest

from ragjax.cli import main
from ragjax.sparsity.calibrated import in_turn

_PROGRAM = """
import jax
import jax.numpy as jnp
from ragjax.sparsity.calibrated.in_turn import run_where_called, waited_for

{first}
work = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ x), x))
given = jax.block_until_ready(jnp.eye(500))
jax.block_until_ready(work(given))
print(work(given).is_ready(), waited_for(work(given)).is_ready())
"""


@pytest.mark.parametrize(("first", "ready"), [("", "False True"), ("run_where_called()", "True True")])
def test_a_program_is_done_when_its_call_returns(first, ready):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(first=first)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ready


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "nothing", "out", "--sparsity", "0.5"],
        ["prune", "nothing", "out", "--compare", "magnitude", "--sparsity", "0.5"],
        ["quantize", "nothing", "out"],
    ],
    ids=["prune", "compare", "quantize"],
)
def test_verbs_that_go_block_by_block_run_programs_where_they_are_called(words, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(in_turn, "run_where_called", lambda: asked.append(True))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert asked == [True]
