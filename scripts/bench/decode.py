"""Tokens a second of greedy decoding, beside what one would otherwise use, on GPT-2 124M's geometry.

Every program continues the same prompts of 8 random tokens by as many new ones, nothing ends a text, and
takes its turn in a process of its own while the others sleep. A ratio is the median over rounds of the
quotient within a round. Rows:

    transformers        `generate`, torch eager
    transformers_static `generate` with a static cache, which on a card it compiles (not by default)
    ctranslate2_f32     CTranslate2, and with int8 weights:
    ctranslate2_int8
    llama_f32           llama.cpp, through llama-cpp-python; and its own q8_0:
    llama_q8_0
    ragjax              the JAX engine, float32; and with `ragjax quantize --scheme`, --tables int8:
    ragjax_int8
    ragjax_int8_activations
    onnx_f32            `ragjax generate --engine onnx`, which is onnxruntime; and of `ragjax export --dtype`:
    onnx_int8
    onnx_int8_128
    onnx_int4

MODEL is a folder of a GPT-2 124M; without it the weights are random. llama-cpp-python may be installed in an
environment of its own, whose interpreter --llama-python names. What is not installed is left out, and said.

Share of bandwidth: bytes of the weights that a step reads (all of them, the table of tokens as the head),
times steps a second, over the rate at which torch sums up a gigabyte in the same round.

The JAX engine decodes in panels, which want `pip install '.[cpu]'`.

With --device cuda the rows of torch and JAX work on a graphics card, and the others are left out. --dtype is
that of their weights and of all they compute, but for ragjax_int8 and the like: what is rounded computes in
float32.

Aims on two cores: ragjax at least 2.2 times transformers at batch 1 and 3.5 times at batch 8; int8 5 and 7.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

from turns import Peer, device_name, serve, started, use

VOCAB, PROMPT = 50257, 8
LLAMA_ERROR = 4
TABLE, REST = 50257 * 768, 12 * 12 * 768**2
BYTES = {
    "ctranslate2_int8": (1.0, 1.0), "llama_q8_0": (34 / 32, 34 / 32), "onnx_int8": (1.125, 1.125),
    "ragjax_int8": (1.003, 1.003), "ragjax_int8_activations": (1.003, 1.003),
    "onnx_int8_128": (1 + 4 / 128, 1 + 4 / 128), "onnx_int4": (1.125, 0.625),
}  # fmt: skip
"""Of a weight of the table of tokens, and of another matrix; 4 or 2 where it is in --dtype."""


def main() -> None:
    options = parse()
    use(options.device)
    if options.peer:
        serve(lambda: PEERS[options.peer](options))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            options.model = str(Path(folder, "model"))
            random_model(options.model)
        if any(name.startswith("llama") for name in set(options.rows) - set(left_out(options))):
            write_gguf(options, folder)
        found = {str(batch): compare(options, batch, folder) for batch in options.batch}
    result = {
        "new_tokens": options.new_tokens, "rounds": options.rounds, "threads": options.threads,
        "machine": device_name(options.device), "dtype": options.dtype, "left_out": left_out(options),
        "batch": found,
    }  # fmt: skip
    print(json.dumps(result) if options.json else table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="folder of a GPT-2; none: random weights")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="prompts at once (default 1 8)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens written (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that are timed (default 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each (default: all cores)")
    parser.add_argument("--rows", nargs="+", choices=list(PEERS)[:-1], help="default: all but _static")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of torch and JAX (default float32)",
    )
    parser.add_argument("--llama-python", default=sys.executable, help="interpreter with llama-cpp-python")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows is None:
        on_card = [name for name in PEERS if name.startswith(("transformers", "ragjax"))]
        everywhere = [name for name in PEERS if name not in ("transformers_static", "bandwidth")]
        options.rows = everywhere if options.device == "cpu" else on_card
    return options


def left_out(options: argparse.Namespace) -> dict[str, str]:
    """Rows that cannot be measured, and why."""
    needs = {"ctranslate2": "ctranslate2", "onnx": "onnxruntime"}
    if options.device != "cpu":
        engines = (*needs, "llama")
        return {name: "is not on cards here" for name in options.rows if name.startswith(engines)}
    reasons = {
        name: f"{package} is not installed"
        for name in options.rows
        for prefix, package in needs.items()
        if name.startswith(prefix) and importlib.util.find_spec(package) is None
    }
    llama = [name for name in options.rows if name.startswith("llama")]
    imported = [options.llama_python, "-c", "import llama_cpp"]
    if llama and subprocess.run(imported, capture_output=True).returncode:
        reasons |= dict.fromkeys(llama, "llama-cpp-python is not installed")
    return reasons


def random_model(folder: str) -> None:
    """A GPT-2 124M with random weights, and a tokenizer that merges bytes two by two."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in bytes_ for b in bytes_][: VOCAB - len(bytes_) - 1]
    words = [*bytes_, *(a + b for a, b in merges), "<|endoftext|>"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    ).save_pretrained(folder)


def write_gguf(options: argparse.Namespace, folder: str) -> None:
    """The model for llama.cpp, in float32."""
    from ragjax.interchange.folder import load
    from ragjax.interchange.gguf import write_gguf

    write_gguf(load(options.model), Path(folder, "model.gguf"))


def compare(options: argparse.Namespace, batch: int, folder: str) -> dict:
    """All rows in turns."""
    rows = [name for name in options.rows if name not in left_out(options)]
    given = ["--batch", str(batch), "--folder", folder]
    if options.model not in sys.argv:
        given.append(options.model)  # behind an option of one value: one of several would take it
    makers = {
        name: partial(
            Peer, name, *given, OMP_NUM_THREADS=str(options.threads),
            interpreter=options.llama_python if name.startswith("llama") else sys.executable,
        )
        for name in [*rows, "bandwidth"]
    }  # fmt: skip
    peers = started(makers, options.device)
    rounds = []
    for number in range(options.rounds):
        order = list(peers) if number % 2 == 0 else list(peers)[::-1]
        rounds.append({name: peers[name].ask_warm("work") for name in order})
    closing = {name: one.close() for name, one in peers.items()}
    new = batch * options.new_tokens
    told: dict[str, dict] = {}
    for name in rows:
        rate = [new / r[name]["seconds"] for r in rounds]
        whole = 4.0 if options.dtype == "float32" else 2.0
        table, rest = BYTES.get(name, (whole, whole))
        read = TABLE * table + REST * rest
        shares = [
            read * speed / batch / r["bandwidth"]["bytes_per_second"]
            for speed, r in zip(rate, rounds, strict=True)
        ]
        told[name] = {
            "tokens_per_second": round(median(rate), 1),
            "share_of_bandwidth": round(median(shares), 3),
            "version": closing[name]["version"],
        }
        if "transformers" in rows:
            first = closing["transformers"]["tokens"]
            pairs = zip(chain(*first), chain(*closing[name]["tokens"]), strict=True)
            same = [one == other for one, other in pairs]
            told[name]["times_transformers"] = round(
                median(r["transformers"]["seconds"] / r[name]["seconds"] for r in rounds), 2
            )
            told[name]["tokens_like_transformers"] = round(sum(same) / len(same), 3)
    bandwidth = median(r["bandwidth"]["bytes_per_second"] for r in rounds)
    return {"rows": told, "bandwidth_gb_per_second": round(bandwidth / 1e9, 1)}


def prompts(options: argparse.Namespace) -> list[list[int]]:
    """The same for all: lines of pseudorandom tokens."""
    state, found = 1, []
    for _ in range(options.batch[0]):
        row = []
        for _ in range(PROMPT):
            state = (state * 48271) % 2147483647
            row.append(state % VOCAB)
        found.append(row)
    return found


def peer(write: Callable[[], list[list[int]]], version: str):
    """What a peer serves: the continuation, after it was written once."""
    tokens = write()
    return {"work": lambda: write() and None}, lambda: {"tokens": tokens, "version": version}


def transformers_peer(options: argparse.Namespace):
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    model = transformers.GPT2LMHeadModel.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    ids = torch.tensor(prompts(options), device=options.device)
    cache = {"cache_implementation": "static"} if options.peer.endswith("static") else {}

    def write() -> list[list[int]]:
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.new_tokens,
                min_new_tokens=options.new_tokens, do_sample=False, pad_token_id=50256, **cache,
            )  # fmt: skip
        return out[:, PROMPT:].tolist()

    return peer(write, f"transformers {transformers.__version__}, torch {torch.__version__}")


def ctranslate2_peer(options: argparse.Namespace):
    import ctranslate2

    kind = "float32" if options.peer.endswith("f32") else "int8"
    folder = str(Path(options.folder, options.peer))
    if not Path(folder).exists():
        converter = ctranslate2.converters.TransformersConverter(options.model)
        converter.convert(folder, quantization=None if kind == "float32" else kind)
    model = ctranslate2.Generator(folder, intra_threads=options.threads, compute_type=kind)
    names = json.loads(Path(folder, "vocabulary.json").read_text())
    rows = [[names[token] for token in row] for row in prompts(options)]

    def write() -> list[list[int]]:
        out = model.generate_batch(
            rows, max_length=options.new_tokens, min_length=options.new_tokens, beam_size=1,
            sampling_topk=1, include_prompt_in_result=False, end_token=[],
        )  # fmt: skip
        return [each.sequences_ids[0] for each in out]

    return peer(write, f"ctranslate2 {ctranslate2.__version__}")


def llama_peer(options: argparse.Namespace):
    import ctypes

    import llama_cpp as c
    import numpy as np

    @c.llama_log_callback
    def told(level: int, text: bytes, _) -> None:
        if level == LLAMA_ERROR:  # and not thousands of lines
            print(text.decode(), end="", file=sys.stderr)

    c.llama_log_set(told, None)
    file = str(Path(options.folder, "model.gguf"))
    if options.peer == "llama_q8_0":
        whole, file = file, str(Path(options.folder, "q8_0.gguf"))
        if not Path(file).exists():
            how = c.llama_model_quantize_default_params()
            how.ftype = c.LLAMA_FTYPE_MOSTLY_Q8_0
            assert c.llama_model_quantize(whole.encode(), file.encode(), ctypes.byref(how)) == 0
    rows = prompts(options)
    model = c.llama_model_load_from_file(file.encode(), c.llama_model_default_params())
    asked = c.llama_context_default_params()
    asked.n_ctx, asked.n_batch, asked.n_seq_max = 1024, 512, len(rows)
    asked.n_threads = asked.n_threads_batch = options.threads
    context = c.llama_init_from_model(model, asked)
    assert model
    assert context
    room = c.llama_batch_init(512, 0, 1)

    def feed(tokens: list[list[int]], place: int) -> list[int]:
        """The likeliest token after the last of each row."""
        index = 0
        for row, each in enumerate(tokens):
            for offset, token in enumerate(each):
                room.token[index], room.pos[index] = token, place + offset
                room.n_seq_id[index], room.seq_id[index][0] = 1, row
                room.logits[index] = offset == len(each) - 1
                index += 1
        room.n_tokens = index
        assert c.llama_decode(context, room) == 0
        last = [(row + 1) * len(tokens[0]) - 1 for row in range(len(tokens))]
        return [
            int(np.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (VOCAB,)).argmax()) for i in last
        ]

    def write() -> list[list[int]]:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        new = [[token] for token in feed(rows, 0)]
        for step in range(options.new_tokens - 1):
            fed = feed([row[-1:] for row in new], PROMPT + step)
            for row, token in zip(new, fed, strict=True):
                row.append(token)
        return new

    write.kept = told  # llama.cpp calls it
    return peer(write, f"llama-cpp-python {c.__version__}")


def ragjax_peer(options: argparse.Namespace):
    import jax

    from ragjax.config import Quantize
    from ragjax.generation import generate_tokens
    from ragjax.interchange.folder import load
    from ragjax.parallel.compile_cache import keep_compiled_programs
    from ragjax.quantizing import quantize

    keep_compiled_programs()
    model, rows = load(options.model, dtype=options.dtype), prompts(options)
    if options.peer != "ragjax":
        model = quantize(model, Quantize(scheme=options.peer.removeprefix("ragjax_"), tables="int8")).model

    def write() -> list[list[int]]:
        out = generate_tokens(
            model, rows, max_new_tokens=options.new_tokens, stop_at_eos=False, cache_dtype=options.dtype
        )
        return [row.tolist() for row in out]

    return peer(write, f"jax {jax.__version__}")


def onnx_peer(options: argparse.Namespace):
    import onnxruntime

    from ragjax.generation import generate_tokens
    from ragjax.interchange.folder import load
    from ragjax.interchange.onnx import export_onnx, load_onnx

    kind = options.peer.removeprefix("onnx_").replace("f32", "float32")
    folder = Path(options.folder, options.peer)
    if not folder.exists():
        export_onnx(load(options.model), folder, dtype=kind)
    model, rows = load_onnx(folder, threads=options.threads), prompts(options)

    def write() -> list[list[int]]:
        out = generate_tokens(model, rows, max_new_tokens=options.new_tokens, stop_at_eos=False)
        return [row.tolist() for row in out]

    return peer(write, f"onnxruntime {onnxruntime.__version__}")


def bandwidth_peer(options: argparse.Namespace):
    """Sums up a gigabyte, and tells the rate."""
    import time

    import torch

    torch.set_num_threads(options.threads)
    gigabyte = torch.ones(2**28, device=options.device)
    gigabyte.sum().item()

    def work() -> dict:
        began = time.perf_counter()
        for _ in range(3):
            gigabyte.sum().item()
        return {"bytes_per_second": 3 * 2**30 / (time.perf_counter() - began)}

    return {"work": work}, dict


def table(result: dict) -> str:
    lines = []
    for batch, found in result["batch"].items():
        lines += [
            f"batch {batch}, {found['bandwidth_gb_per_second']} GB/s",
            f"{'':18}{'tokens/s':>10}{'of bandwidth':>14}{'x transformers':>16}{'same tokens':>13}",
        ]
        for name, row in found["rows"].items():
            times, same = row.get("times_transformers"), row.get("tokens_like_transformers")
            lines.append(
                f"{name:18}{row['tokens_per_second']:>10,.1f}{row['share_of_bandwidth']:>14.0%}"
                f"{'' if times is None else f'{times:.2f}':>16}{'' if same is None else f'{same:.0%}':>13}"
            )
    lines += [f"left out: {name}: {why}" for name, why in result["left_out"].items()]
    lines.append(f"{result['machine']}; {result['new_tokens']} new tokens, {result['rounds']} rounds")
    return "\n".join(lines)


PEERS = {
    "transformers": transformers_peer,
    "transformers_static": transformers_peer,
    "ctranslate2_f32": ctranslate2_peer,
    "ctranslate2_int8": ctranslate2_peer,
    "llama_f32": llama_peer,
    "llama_q8_0": llama_peer,
    "ragjax": ragjax_peer,
    "ragjax_int8": ragjax_peer,
    "ragjax_int8_activations": ragjax_peer,
    "onnx_f32": onnx_peer,
    "onnx_int8": onnx_peer,
    "onnx_int8_128": onnx_peer,
    "onnx_int4": onnx_peer,
    "bandwidth": bandwidth_peer,
}

if __name__ == "__main__":
    main()
