"""Two real processes, each with two devices, train as one process with four does."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ragjax.config import Mesh
from ragjax.parallel import hosts
from ragjax.parallel.mesh import make_mesh

SCRIPT = """
import contextlib, io, json, sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from ragjax.parallel import hosts
hosts.start()
hosts.start()  # Joins once.
import numpy as np
from pathlib import Path
from rich.console import Console
from ragjax.config import Distill, Mesh, OnPolicy, Sparsity, Train
from ragjax.data.corpus import Corpus
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig
from ragjax.parallel.mesh import make_mesh
from ragjax.training.fit import Place, Texts, fit
from ragjax.training.interrupts import Interrupts
from ragjax.training.loop import Interrupted

class AfterFour(Interrupts):
    times = 0

    def requested(self):
        self.times += 1
        return self.times == 4

rng = np.random.default_rng(0)
tokens = rng.integers(0, 60, 2000).astype(np.uint16)
corpus = Corpus(tokens, np.arange(0, 2000, 50), utf8_bytes=2000, words=500)
config = DecoderConfig(vocab_size=300, positions=32, width=32, layers=2, heads=4, mlp_width=64, eos_token=7)
folder, shown = Path(sys.argv[1]), io.StringIO()
for wish in (AfterFour, Interrupts):  # The second call goes on from the checkpoint of the first.
    with wish() as interrupts, contextlib.suppress(Interrupted):
        model = fit(
            Model(config, init_params(config, 0)), stage="s", texts=Texts(corpus, corpus, 16), seed=1,
            train=Train(steps=8, batch_size=8, accumulate=2, warmup=1, log_every=1, checkpoint_every=8),
            sparsity=Sparsity(target=0.5, stop=4, every=1), distill=Distill(),
            teachers=[Model(config, init_params(config, 5))],
            on_policy=OnPolicy(share=0.6, prompt_tokens=4, teacher_share=0.3, replay=0.3, rise=0.1),
            place_=Place(make_mesh(Mesh(data=2, fsdp=2)), folder, Console(file=shown), interrupts),
        )
print(json.dumps({
    "processes": jax.process_count(),
    "resumed": "resumed at step 4" in shown.getvalue(),
    "total": float(sum(np.abs(x).sum(dtype=np.float64) for x in jax.tree.leaves(model.params))),
}))
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(environment, folder, devices, process=None, processes=1, port=0):
    if process is not None:
        environment = environment | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
        }
    command = [sys.executable, "-c", SCRIPT, str(folder), str(devices)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def losses(folder):
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, own_process):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    alone = finish(start(own_process, one, 4))
    port = free_port()
    pair = [start(own_process, two, 2, process, 2, port) for process in (0, 1)]
    return one, alone, two, [finish(process) for process in pair]


def test_both_processes_took_part(runs):
    assert [told["processes"] for told in runs[3]] == [2, 2]


def test_two_hosts_have_the_losses_of_one(runs):
    one, alone, two, pair = runs
    assert (alone["resumed"], pair[0]["resumed"]) == (True, True)
    assert len(losses(two)) == 8
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


def test_both_hosts_decide_alike_what_the_student_writes(runs):
    one, _, two, _ = runs
    written = []
    for folder in (one, two):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        written.append([line.get("written_tokens") for line in lines if "loss" in line])
    assert written[0] == written[1]
    assert 0 < sum(length is not None for length in written[0]) < 8


def test_every_host_gets_the_same_parameters(runs):
    _, alone, _, pair = runs
    assert pair[0]["total"] == pair[1]["total"]
    assert pair[0]["total"] == pytest.approx(alone["total"], rel=1e-4)


def test_a_host_makes_only_the_rows_its_devices_hold():
    whole = np.arange(3 * 8 * 5).reshape(3, 8, 5)
    made = []

    def rows(wanted):
        made.append(wanted.stop - wanted.start)
        return whole[:, wanted]

    found = hosts.global_array(whole.shape, rows, make_mesh(Mesh(data=2, fsdp=2, tensor=2)), axis=1)
    np.testing.assert_array_equal(found, whole)
    assert set(made) == {2}
    assert {shard.data.shape for shard in found.addressable_shards} == {(3, 2, 5)}


@pytest.mark.parametrize(
    ("environment", "tpu", "joined"),
    [
        ({}, False, []),
        ({}, True, [()]),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False, []),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, False, [()]),
        ({"SLURM_STEP_NODELIST": "n[0-1]"}, False, [()]),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"}, False, [()]),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, False, [()]),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            False,
            [("h:1", 4, 3)],
        ),
    ],
    ids=str,
)
def test_hosts_join_where_the_environment_says_there_are_several(monkeypatch, environment, tpu, joined):
    for name in (*hosts._CLUSTER_VARIABLES, "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(hosts, "_on_tpu", lambda: tpu)
    hosts.start()
    assert calls == joined


@pytest.mark.parametrize(("device", "library"), [(True, True), (True, False), (False, True)])
def test_a_tpu_is_a_device_and_the_library_for_it(monkeypatch, device, library):
    monkeypatch.setattr(Path, "exists", lambda path: device and str(path) == "/dev/vfio/0")
    monkeypatch.setattr(hosts.importlib.util, "find_spec", lambda name: name if library else None)
    assert hosts._on_tpu() == (device and library)
