"""Two processes with two devices each write the cache of one process with four, and train from it alike."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from ragjax.interchange.folder import save

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[3]))
from dataclasses import replace
from ragjax.caching import cache_teacher
from ragjax.config import Compress, Data, Evaluate, Mesh, Student, Teacher, Train
from ragjax.recipe import compress
from ragjax.teacher_cache import write

write._SMALLEST = 1
texts, out = sys.argv[1:3]
config = Compress(
    teacher=Teacher(model=f"{texts}/teacher"),
    student=Student(layers=1, control=False),
    data=Data(train=f"text:{texts}/*.txt", sequence_length=32, fixed_cuts=True),
    train=Train(steps=4, warmup=1, batch_size=8, log_every=1),
    evaluate=Evaluate(max_tokens=500, speed_rounds=1, sample_tokens=2, batch_size=4),
    mesh=Mesh(data=2, fsdp=2),
)
cache_teacher(config, f"{out}/cache", top_k=20)
cached = replace(config, teacher=replace(config.teacher, cache=f"{out}/cache"))
print(json.dumps(compress(cached, f"{out}/run")["student"].perplexity))
"""


def start(environment, texts, out, devices, **more):
    command = [sys.executable, "-c", SCRIPT, str(texts), str(out), str(devices)]
    return subprocess.Popen(
        command, env=environment | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_two_hosts_write_and_read_as_one(tiny_byte_model, tmp_path, contents, own_process):
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        (texts / f"{number}.txt").write_text(" ".join(map(str, rng.integers(0, 99, 60))))
    save(tiny_byte_model, texts / "teacher")
    alone = finish(start(own_process, texts, tmp_path / "one", 4))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    pair = [
        start(
            own_process, texts, tmp_path / "two", 2,
            JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(number),
        )
        for number in (0, 1)
    ]  # fmt: skip
    assert [finish(process) for process in pair] == [pytest.approx(alone, rel=1e-5)] * 2
    assert contents(tmp_path / "two" / "cache") == contents(tmp_path / "one" / "cache")
    assert len(contents(tmp_path / "one" / "cache")) == 4 + 2
