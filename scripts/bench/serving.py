"""Tokens a second that a server writes with a draft, and without it.

    ragjax compress configs/draft.py
    python scripts/bench/serving.py runs/draft/teacher runs/draft/student

Two servers of MODEL stand beside each other, one that speculates and one that does not. Prompts are the
beginnings of held-out documents; each server answers each of them alone, greedily, while the other has
nothing to do. Figures are medians over the answers' own `timing`; the ratio is the median over prompts of
the quotient. The texts must be the same.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median
from urllib.request import Request, urlopen

from turns import machine


def main() -> None:
    options = parse()
    print(json.dumps(compare(options), indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="MODEL")
    parser.add_argument("draft", help="MODEL of the draft")
    parser.add_argument("--data", default="builtin:python/validation", help="source of the documents")
    parser.add_argument("--prompts", type=int, default=8, help="documents (default 8)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens of an answer (default 128)")
    parser.add_argument("--rounds", type=int, default=3, help="times each is asked (default 3)")
    parser.add_argument("--slots", type=int, default=1, help="of each server (default 1)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """Both servers, asked in turns."""
    from ragjax.data.sources import documents

    prompts = [text[:60] for text in islice(documents(options.data), options.prompts)]
    found: dict[str, list[dict]] = {"drafted": [], "alone": []}
    same = 0
    with serving(options) as drafted, serving(options, "--no-speculate") as alone:
        addresses = {"drafted": drafted, "alone": alone}
        for turn in range(options.rounds):
            for prompt in prompts:
                texts = {}
                for name in list(addresses)[:: 1 if turn % 2 == 0 else -1]:
                    told = ask(addresses[name], prompt, options.new_tokens)
                    texts[name] = told["choices"][0]["text"]
                    found[name].append(told["timing"])
                same += texts["drafted"] == texts["alone"]
    speeds = {name: [each["tokens_per_second"] for each in timings] for name, timings in found.items()}
    return {
        "tokens_per_second": {name: median(each) for name, each in speeds.items()},
        "ratio": median(a / b for a, b in zip(speeds["drafted"], speeds["alone"], strict=True)),
        "acceptance_rate": median(each["acceptance_rate"] for each in found["drafted"]),
        "same_texts": f"{same} of {options.rounds * len(prompts)}",
        "options": vars(options),
        "machine": machine(),
    }


@contextmanager
def serving(options: argparse.Namespace, *flags: str) -> Iterator[str]:
    """A server of both models, and its address."""
    command = [sys.executable, "-m", "ragjax", "serve", options.model, "--draft", options.draft]
    command += ["--port", "0", "--slots", str(options.slots), *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    address, told = "", ""
    try:
        for line in server.stdout:
            told += line
            if page := re.search(r"page +(http://\S+?)/?$", line.strip()):
                address = page[1]
            if line.startswith("ready"):
                break
        else:
            raise SystemExit(f"The server did not start:\n{told}")
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=90)


def ask(address: str, prompt: str, new_tokens: int) -> dict:
    """The answer of the first model to a prompt, greedy, of so many tokens."""
    body = {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{address}/v1/completions", json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
