"""Programs that run where they are called, which JAX must be told before its first one."""

import platform
import subprocess
import sys

import pytest

from ragjax.cli import main
from ragjax.sparsity.calibrated import in_turn

_PROGRAM = """
import jax
import jax.numpy as jnp
from ragjax.sparsity.calibrated.in_turn import spare_memory, waited_for

{first}
work = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ x), x))
given = jax.block_until_ready(jnp.eye(500))
jax.block_until_ready(work(given))
print(work(given).is_ready(), waited_for(work(given)).is_ready())
"""


@pytest.mark.parametrize(("first", "ready"), [("", "False True"), ("spare_memory()", "True True")])
def test_a_program_is_done_when_its_call_returns(first, ready):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(first=first)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ready


_FREED = """
import ctypes
from pathlib import Path
from ragjax.sparsity.calibrated.in_turn import spare_memory

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024

{first}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):  # malloc keeps more of what it has seen come and go
    pieces = [libc.malloc(8 << 20) for _ in range(8)]
    [ctypes.memset(piece, 1, 8 << 20) for piece in pieces]
    before = resident()
    [libc.free(piece) for piece in pieces[:-1]]
    after = resident()
    libc.free(pieces[-1])
print(before - after > 50)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(("first", "given"), [("", "False"), ("spare_memory()", "True")])
def test_what_is_freed_is_given_back(first, given):
    done = subprocess.run(
        [sys.executable, "-c", _FREED.format(first=first)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == given


@pytest.mark.parametrize(
    "words",
    [
        ["prune", "nothing", "out", "--sparsity", "0.5"],
        ["prune", "nothing", "out", "--compare", "magnitude", "--sparsity", "0.5"],
        ["quantize", "nothing", "out"],
    ],
    ids=["prune", "compare", "quantize"],
)
def test_verbs_that_go_block_by_block_spare_memory(words, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(in_turn, "spare_memory", lambda: asked.append(True))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert asked == [True]
