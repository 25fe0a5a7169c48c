"""ragjax's files in llama.cpp itself, where it is installed: here, or where RAGJAX_LLAMA_PYTHON says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_llama_cpp_gives_the_tokens_logits_and_continuations_of_ragjax():
    if not (importlib.util.find_spec("llama_cpp") or "RAGJAX_LLAMA_PYTHON" in os.environ):
        pytest.skip(
            "llama-cpp-python is not installed, and RAGJAX_LLAMA_PYTHON names no interpreter that has it"
        )
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_llama_cpp.py"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("continuations same") == 8
    assert "DIFFER" not in done.stdout
