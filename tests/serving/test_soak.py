"""Many clients at once, some of whom leave early or send nonsense."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak_serve.py"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--drafted"]], ids=str)
def test_many_clients_get_what_the_model_writes_alone(flags):
    command = [sys.executable, SCRIPT, "--requests", "100", "--clients", "16", *flags]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "every finished answer is what the model writes alone" in told.stdout
