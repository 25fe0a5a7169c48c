"""A whole compression on two processes, each with two devices, gives the figures of one process with four."""

import json
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from ragjax.config import Architecture, Compress, Data, Evaluate, Mesh, Sparsity, Student, Teacher, Train
from ragjax.recipe import compress

brief = Train(steps=4, warmup=1, batch_size=8, log_every=1)
figures = compress(
    Compress(
        teacher=Teacher(architecture=Architecture(layers=3, width=32, heads=4), train=brief),
        student=Student(layers=2, control=False, scratch=True),
        data=Data(train="builtin:python", sequence_length=32, vocab_size=300),
        train=brief,
        sparsity=Sparsity(target=0.5, stop=2, every=1),
        evaluate=Evaluate(max_tokens=2000, speed_rounds=1, sample_tokens=4, batch_size=4),
        mesh=Mesh(data=2, fsdp=2),
    ),
    sys.argv[1],
)
print(json.dumps({name: [f.perplexity, f.nonzero_parameters] for name, f in figures.items()}))
"""


def start(environment, folder, devices, **more):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(devices)]
    return subprocess.Popen(
        command, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_two_hosts_compress_as_one(tmp_path, own_process):
    alone = finish(start(own_process, tmp_path / "one", 4))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    pair = [
        start(
            own_process, tmp_path / "two", 2,
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(number),
        )
        for number in (0, 1)
    ]  # fmt: skip
    for found in [finish(process) for process in pair]:
        assert found.keys() == alone.keys() == {"teacher", "student", "scratch"}
        for name, (perplexity, nonzero) in alone.items():
            assert found[name][0] == pytest.approx(perplexity, rel=1e-5)
            assert found[name][1] == nonzero
    samples = json.loads((tmp_path / "one" / "samples.json").read_text())
    assert json.loads((tmp_path / "two" / "samples.json").read_text()) == samples
