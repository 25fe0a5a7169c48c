"""What generation costs the host, beside the compiled program or the session of onnxruntime that it runs.

MODEL, or GPT-2 124M's geometry with random weights and no tokenizer, writes as it does for anyone who calls
`continuations`. Inside, the calls of the compiled programs (JAX) or of the session (onnxruntime) are timed
until their results are there; all other time is the host's. Two calls of different lengths tell what is paid
once a call and what is paid for every token; medians of rounds in which all take turns.

    layers      once a call, JAX: laying the parameters of the layers apart
    prompt      once a call: the program or session that reads the prompt
    host once   once a call: all else
    step        for every token: the program or session
    host        for every token: all else, and its share of step and host together; the aim is 2 %
    of a call   the host's share of the longer call

`jax` has all tokens from one loop on the device. `jax_streamed` is handed them as they come, as a reader is,
while the device writes on: its host's time is what a token takes longer than in `jax`, in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from unittest import mock

from shrink import gpt2
from turns import machine

ROWS = ("jax", "jax_streamed", "onnx_float32", "onnx_int8_128")
PARTS = ("layers", "prompt", "steps")
"""What is no time of the host."""


def main() -> None:
    options = parse()
    result = measure(options)
    print(json.dumps(result) if options.json else table(result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="MODEL; none: random weights")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="prompts at once (default 1 8)")
    parser.add_argument("--prompt-tokens", type=int, default=8, help="tokens of a prompt (default 8)")
    parser.add_argument(
        "--new-tokens", nargs=2, type=int, default=[40, 64], help="of the two calls (default 40 64)"
    )
    parser.add_argument("--layers", type=int, default=12, help="transformer blocks (default 12)")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured (default 5)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    options = parser.parse_args()
    if "jax_streamed" in options.rows and "jax" not in options.rows:
        parser.error("jax_streamed is measured beside jax: ask for both")
    return options


def measure(options: argparse.Namespace) -> dict:
    """All of them in turns."""
    import numpy as np

    from ragjax.interchange.folder import load
    from ragjax.interchange.onnx import export_onnx, load_onnx
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    model = load(options.model) if options.model else gpt2(options.layers)
    shape = (max(options.batch), options.prompt_tokens)
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, shape).tolist()
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for row in options.rows:
            kind, _, dtype = row.partition("_")
            models[row] = (
                load_onnx(export_onnx(model, Path(folder, row), dtype=dtype)) if kind == "onnx" else model
            )
        wanted = [
            (row, batch, new) for batch in options.batch for row in models for new in options.new_tokens
        ]
        calls: dict[tuple, list[dict[str, float]]] = {each: [] for each in wanted}
        for number in range(options.rounds + 1):
            for row, batch, new in wanted[:: -1 if number % 2 else 1]:
                told = one_call(models[row], prompts[:batch], new, streamed=row.endswith("streamed"))
                # The first compiles.
                if number:
                    calls[row, batch, new].append(told)
    for row, batch, new in wanted:
        if row == "jax_streamed":
            calls[row, batch, new] = beside(calls["jax", batch, new], calls[row, batch, new])
    short, long = sorted(options.new_tokens)
    return {
        "batch": {
            str(batch): {
                row: figures(calls[row, batch, short], calls[row, batch, long], short, long) for row in models
            }
            for batch in options.batch
        },
        "new_tokens": [short, long], "rounds": options.rounds, "machine": machine(),
    }  # fmt: skip


def beside(loop: list[dict], streamed: list[dict]) -> list[dict]:
    """What streaming takes, of which the programs take what they take in one loop in the same round."""
    programs = [{part: call[part] for part in PARTS} for call in loop]
    return [
        call | parts | {"host": call["all"] - sum(parts.values())}
        for call, parts in zip(streamed, programs, strict=True)
    ]


def figures(shorter: list[dict], longer: list[dict], short: int, long: int) -> dict:
    """Seconds once a call and for every token, and shares."""

    def per_token(part: str) -> float:
        return median(b[part] - a[part] for a, b in zip(shorter, longer, strict=True)) / (long - short)

    step, host = per_token("steps"), per_token("host")
    whole = median(each["host"] for each in longer)
    return {
        "layers": median(each["layers"] for each in longer),
        "prompt": median(each["prompt"] for each in longer),
        "host_once": whole - host * long,
        "step": step,
        "host": host,
        "host_share": host / (step + host),
        "host_share_of_call": median(each["host"] / each["all"] for each in longer),
    }


def one_call(model, prompts: list[list[int]], new: int, *, streamed: bool) -> dict[str, float]:
    """Seconds of the parts of a call."""
    from ragjax.generation.continuation import continuations
    from ragjax.onnx_model import OnnxModel

    seconds = dict.fromkeys(PARTS, 0.0)
    asked = {"max_new_tokens": new, "stop_at_eos": False}
    reader = {"on_text": lambda row, piece: None} if streamed else {}
    if isinstance(model, OnnxModel):
        model = replace(model, session=Timed(model.session, seconds))
    with nullcontext() if streamed else timed_programs(seconds):
        began = time.perf_counter()
        continuations(model, prompts, **asked, **reader)
        taken = time.perf_counter() - began
    return seconds | {"all": taken, "host": taken - sum(seconds.values())}


class Timed:
    """A session of onnxruntime, of which calls are timed; the first of them reads the prompts."""

    def __init__(self, session, seconds: dict[str, float]):
        self._session, self._seconds, self._part = session, seconds, "prompt"

    def __getattr__(self, name: str):
        return getattr(self._session, name)

    def run_with_iobinding(self, binding) -> None:
        began = time.perf_counter()
        self._session.run_with_iobinding(binding)
        self._seconds[self._part] += time.perf_counter() - began
        self._part = "steps"


@contextmanager
def timed_programs(seconds: dict[str, float]) -> Iterator[None]:
    """Has the programs of JAX's writer timed until their results are there."""
    import jax

    from ragjax.generation import writer

    def timed(program: Callable, part: str) -> Callable:
        def call(*arguments, **named):
            began = time.perf_counter()
            out = jax.block_until_ready(program(*arguments, **named))
            seconds[part] += time.perf_counter() - began
            return out

        return call

    parts = {"laid_out": "layers", "prefill": "prompt", "_go_on": "steps"}
    replaced = {name: timed(getattr(writer, name), part) for name, part in parts.items()}
    with mock.patch.multiple(writer, **replaced):
        yield


def table(result: dict) -> str:
    lines = []
    for batch, rows in result["batch"].items():
        lines.append(
            f"{f'batch {batch}, ms':16}{'layers':>9}{'prompt':>9}{'host once':>11}{'step':>9}{'host':>9}"
            f"{'share':>8}{'of a call':>11}"
        )
        for name, row in rows.items():
            ms = {part: 1e3 * row[part] for part in ("layers", "prompt", "host_once", "step", "host")}
            lines.append(
                f"{name:16}{ms['layers']:>9.2f}{ms['prompt']:>9.2f}{ms['host_once']:>11.2f}{ms['step']:>9.3f}"
                f"{ms['host']:>9.3f}{row['host_share']:>8.1%}{row['host_share_of_call']:>11.1%}"
            )
    short, long = result["new_tokens"]
    lines.append(f"{result['machine']}; {short} and {long} new tokens, {result['rounds']} rounds")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
