"""Shared fixtures: tiny models, and eight simulated devices to shard them over."""

import gc
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Before JAX starts its backends.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "ragjax-test-xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest

from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import DecoderConfig, Rotary

_LLAMA = {
    "rotary": Rotary(), "learned_positions": False, "norm": "rms", "gated": True, "activation": "silu",
    "attention_bias": False, "attention_out_bias": False, "mlp_bias": False, "tied": False,
}  # fmt: skip
_OPT = {"activation": "relu", "position_offset": 2}
KINDS = {
    "gpt2": {},
    "gpt3": {"windows": (0, 3, 5), "scale_attention_by_layer": True},
    "gpt_neo": {"windows": (0, 3), "scale_attention": False, "attention_bias": False},
    "opt": _OPT,
    "opt-350m": {**_OPT, "residual": "post_norm", "final_norm": False, "embedding_width": 10},
    "gpt_neox": {
        "residual": "parallel", "rotary": Rotary(width=2), "learned_positions": False, "tied": False
    },
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, "attention_bias": True, "tied": True, "windows": (0, 4, 4)},
}  # fmt: skip
"""What makes the blocks of each family other than GPT-2's."""


_HURRY = {
    "xla_cpu_use_fusion_emitters": "false",
    "xla_cpu_parallel_codegen_split_count": "1",
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
}
"""Flags of XLA that take half of the processor time off compiling small programs for CPUs."""


def pytest_configure(config):
    """Has XLA and LLVM hurry over programs that are compiled for one small test.

    Slow tests are compiled as for users, and so is everything with JAX_DISABLE_MOST_OPTIMIZATIONS=0.
    """
    if config.option.markexpr == "not slow" and "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
        import jax

        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
        if os.environ["JAX_PLATFORMS"] != "cpu":
            return  # the plugins of other platforms end the process at flags that jaxlib knows
        os.environ["XLA_FLAGS"] += "".join(f" --{name}={value}" for name, value in _known(_HURRY).items())


def pytest_collection_finish():
    """Has garbage collections leave out what modules hold, which is there until the end."""
    gc.collect()
    gc.freeze()


def _known(flags: dict[str, str]) -> dict[str, str]:
    """Those of some flags of XLA that this jaxlib knows; it ends the process at any other."""
    while flags:
        given = os.environ["XLA_FLAGS"] + "".join(f" --{name}={value}" for name, value in flags.items())
        tried = subprocess.run(
            [sys.executable, "-c", "import jax; jax.devices()"], env=os.environ | {"XLA_FLAGS": given},
            capture_output=True, text=True,
        )  # fmt: skip
        unknown = [name for name in flags if f"--{name}=" in tried.stderr]
        if not unknown:
            break
        flags = {name: value for name, value in flags.items() if name not in unknown}
    return flags


@pytest.fixture(scope="session")
def users_flags() -> dict[str, bool]:
    """For `compile`: compiles one program as XLA does for users, whatever its flags are."""
    hurried = [name for name, value in _HURRY.items() if value == "false"]
    return {name: True for name in hurried if f"--{name}=" in os.environ["XLA_FLAGS"]}


@pytest.fixture(scope="session")
def own_process() -> dict[str, str]:
    """The environment of a process that counts its devices itself."""
    devices = " --xla_force_host_platform_device_count=8"
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace(devices, "")}


@pytest.fixture
def two_hosts(own_process):
    """Runs a script as two hosts, each given its number, a port and more; what each wrote to its output."""

    def run(script: str, *more: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        hosts = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(host), port, *more],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**own_process, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
            for host in range(2)
        ]
        try:
            ended = [host.communicate(timeout=240) for host in hosts]
        finally:
            for host in hosts:
                host.kill()
        for host, (_, err) in zip(hosts, ended, strict=True):
            assert host.returncode == 0, err[-3000:]
        return [out for out, _ in ended]

    return run


@pytest.fixture(scope="module")
def quick_collections():
    """Has garbage collections look at nothing that was there before the module's tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def asking_to_stop(monkeypatch):
    """Has the process get a signal each time that a function, as another one's module names it, is called.

    SIGINT interrupts it even where the tests run in the background, whose shell has it ignored.
    """

    @contextmanager
    def within(caller: Callable, name: str, number: int = signal.SIGTERM) -> Iterator[None]:
        does = caller.__globals__[name]

        def stopping(*args, **kwargs):
            os.kill(os.getpid(), number)
            return does(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setitem(caller.__globals__, name, stopping)
            yield

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield within
    if before is not None:  # as one that was not set from Python is
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def as_for_users():
    """Has LLVM compile what a test is the first to compile with all optimizations, where the last bit counts.

    XLA's flags stay: `users_flags`.
    """
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def same_draws_of_torch():
    """Has torch draw the same weights for a test whichever tests ran before: among others two tokens may be
    so nearly alike likely that rounding chooses.
    """
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs before Linux runs out of memory maps for them: XLA then crashes."""
    yield
    import jax

    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        gc.unfreeze()
        jax.clear_caches()


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


@pytest.fixture(scope="session", params=KINDS)
def kind(request) -> str:
    """Each kind of block."""
    return request.param


@pytest.fixture(scope="session")
def of_kind():
    """Makes the tiny config of a kind of block; fields override its own. Two heads share keys in a Llama."""

    def make(kind: str, **fields) -> DecoderConfig:
        shape = {"vocab_size": 50, "positions": 16, "width": 24, "layers": 3, "heads": 6, "mlp_width": 20}
        shape |= {"initializer_range": 0.3, **KINDS[kind], **fields}
        shared = {"kv_heads": shape["heads"] // 2} if kind in ("llama", "qwen2") else {}
        return DecoderConfig(**{**shared, **shape})

    return make


@pytest.fixture(scope="session")
def stop_after():
    """Stands in for `Interrupts`: asks to stop once it has been asked so many times."""
    from ragjax.training.interrupts import Interrupts

    class StopAfter(Interrupts):
        def __init__(self, times=math.inf):
            super().__init__()
            self.left = times

        def requested(self):
            self.left -= 1
            return self.left <= 0

    return StopAfter


@pytest.fixture(scope="session")
def place_in(stop_after):
    """The place of a training: a folder, so many devices, a terminal that is kept, and when to stop."""
    import jax
    from rich.console import Console

    from ragjax.config import Mesh
    from ragjax.parallel.mesh import make_mesh
    from ragjax.training.fit import Place

    def make(folder, *, stop=math.inf, devices=1) -> Place:
        mesh = make_mesh(Mesh(), jax.devices()[:devices])
        return Place(mesh, folder, Console(file=io.StringIO(), width=200), stop_after(stop))

    return make


@pytest.fixture
def ended(capsys):
    """Runs a command that exits, and hands back its code and what it printed."""
    from ragjax.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return stopped.value.code, capsys.readouterr()

    return run


@pytest.fixture
def refused(ended):
    """Runs a command that must end with exit code 2, and hands back its one message."""

    def run(*arguments) -> str:
        code, told = ended(*arguments)
        assert code == 2
        assert "Traceback" not in told.err
        return told.err

    return run


@pytest.fixture(scope="session")
def random_model():
    """Makes a model of a config, every parameter of which matters, biases and norms too; compiles nothing.

    Norms are about 1, all else about 0, as far as the config's `initializer_range` unless a spread is given.
    """
    import jax
    import jax.numpy as jnp

    def make(config: DecoderConfig, seed: int = 0, *, spread: float | None = None, tokenizer=None) -> Model:
        rng = np.random.default_rng(seed)

        def drawn(path, leaf):
            values = rng.normal(path[-1].key == "scale", spread or config.initializer_range, leaf.shape)
            if path[-1].key in ("tokens", "head"):
                values[config.vocab_size :] = 0
            return jnp.asarray(values, jnp.float32)

        shapes = jax.eval_shape(lambda: init_params(config, 0))
        return Model(config, jax.tree_util.tree_map_with_path(drawn, shapes), tokenizer)

    return make


@pytest.fixture
def pairs_file(tmp_path):
    """Writes (prompt, completion) pairs as JSON lines, and gives the URI of that source."""

    def write(rows, name: str = "pairs.jsonl") -> str:
        lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in rows)
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return f"jsonl:{tmp_path / name}#prompt,completion"

    return write


@pytest.fixture(scope="session")
def types_of_products():
    """Tells the types of both factors and of the result of each matrix product a function asks XLA for."""
    import jax

    product = r"dot_general .*: \(tensor<\S*?(\w+)>, tensor<\S*?(\w+)>\) -> tensor<\S*?(\w+)>"

    def find(function, *arguments) -> list[tuple[str, str, str]]:
        text = jax.jit(function).lower(*arguments).as_text()
        types = [tuple(re.sub(r".*x", "", shape) for shape in found) for found in re.findall(product, text)]
        assert len(types) == text.count("dot_general ")
        return types

    return find


@pytest.fixture(scope="session")
def as_torch():
    """Turns a `Model` into transformers' torch GPT-2, tensor by tensor, without ragjax's interchange."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def convert(model: Model):
        config, params = model.config, model.params
        gpt2 = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.positions,
                n_embd=config.width,
                n_layer=config.layers,
                n_head=config.heads,
                n_inner=config.mlp_width,
                activation_function=config.activation,
                layer_norm_epsilon=config.norm_epsilon,
                tie_word_embeddings=config.tied,
                scale_attn_weights=config.scale_attention,
                scale_attn_by_inverse_layer_idx=config.scale_attention_by_layer,
                bos_token_id=config.bos_token,
                eos_token_id=config.eos_token,
            )
        ).eval()
        layers, attention = params["layers"], params["layers"]["attention"]
        tensors = {
            "wte.weight": params["embedding"]["tokens"][: config.vocab_size],
            "wpe.weight": params["embedding"]["positions"],
            "ln_f.weight": params["final_norm"]["scale"],
            "ln_f.bias": params["final_norm"]["bias"],
        }
        for i in range(config.layers):
            for part, last in (("weight", "kernel"), ("bias", "bias")):
                fused = [attention[name][last][i] for name in ("query", "key", "value")]
                tensors[f"h.{i}.attn.c_attn.{part}"] = np.concatenate(fused, -1)
                tensors[f"h.{i}.attn.c_proj.{part}"] = attention["out"][last][i]
                tensors[f"h.{i}.mlp.c_fc.{part}"] = layers["mlp"]["up"][last][i]
                tensors[f"h.{i}.mlp.c_proj.{part}"] = layers["mlp"]["down"][last][i]
            for norm, name in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
                tensors[f"h.{i}.{norm}.weight"] = layers[name]["scale"][i]
                tensors[f"h.{i}.{norm}.bias"] = layers[name]["bias"][i]
        tensors = {name: torch.tensor(np.asarray(value)) for name, value in tensors.items()}
        gpt2.transformer.load_state_dict(tensors, strict=True)
        if not config.tied:
            gpt2.lm_head.weight.data = torch.tensor(np.asarray(params["head"][: config.vocab_size]))
        return gpt2

    return convert


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A byte-level tokenizer without merges: 256 bytes and <|endoftext|>."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end)


@pytest.fixture(scope="session")
def sentencepiece_tokenizer():
    """A Llama tokenizer: pieces that spell a space as U+2581, tokens for bytes, and <s> before every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    learner.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 9, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(pair) for pair in learned["merges"]]
    return LlamaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, add_bos_token=True
    )


@pytest.fixture(scope="session")
def tiny_byte_model(byte_tokenizer) -> Model:
    """A random model over `byte_tokenizer`'s 257 tokens, padded to 384."""
    config = DecoderConfig(
        vocab_size=257,
        positions=64,
        width=32,
        layers=2,
        heads=4,
        mlp_width=64,
        initializer_range=0.1,
        bos_token=256,
        eos_token=256,
    )
    return Model(config, init_params(config, seed=5), byte_tokenizer)


@pytest.fixture(scope="session")
def torch_gpt2():
    """Makes random GPT-2s of transformers, every parameter of which matters; fields override GPT2Config's."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(seed: int = 0, attention: str = "eager", **fields) -> GPT2LMHeadModel:
        torch.manual_seed(seed)
        shape = {"vocab_size": 101, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
        ids = {"bos_token_id": 100, "eos_token_id": 100}
        config = GPT2Config(attn_implementation=attention, **{**shape, **ids, **fields})
        model = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        return model

    return make


@pytest.fixture(scope="session")
def randomize():
    """Makes every parameter of a torch model matter: biases, norms, and weights far from zero."""
    import torch

    def spread(model, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    return spread


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, a real language model."""
    from ragjax.cache_folder import cache_folder

    folder = cache_folder() / "smollm2"
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2 is not there: run python scripts/fetch_smollm2.py")
    return folder
