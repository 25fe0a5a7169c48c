"""Speed of a model with a draft, beside the model alone, in turns.

Give MODEL and DRAFT, and texts to continue: `--prompt`, or the first tokens of documents of `--data`, which
neither should have learnt from. Without them the model is a GPT-2 124M in geometry, with random
weights, and its draft the lower layers of it: what the layers above them add is made small by `--agree`, so
that the draft is often right. Such a pair shows what the loop costs and gains at that size and acceptance; it
says nothing of how often a distilled student is right.

Both continue the same prompts, in alternating order; the ratio is the median over rounds of the quotient
within a round. Greedy, unless there is a `--temperature`; the tokens are compared.

    ragjax compress configs/draft.py
    python scripts/bench/speculative.py runs/draft/teacher runs/draft/student --data builtin:python/validation
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from statistics import median

from turns import machine

VOCAB = 50257


def main() -> None:
    options = parse()
    print(json.dumps(compare(options), indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="MODEL")
    parser.add_argument("draft", nargs="?", help="MODEL of the draft")
    parser.add_argument("--prompt", nargs="+", default=["The"], help="texts to continue")
    parser.add_argument("--data", help="instead: a source of documents, whose beginnings are continued")
    parser.add_argument("--prompts", type=int, default=8, help="documents of --data (default 8)")
    parser.add_argument("--prompt-tokens", type=int, default=16, help="tokens of each of them (default 16)")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once (default 1)")
    parser.add_argument(
        "--layers", type=int, default=12, help="layers of the model, without MODEL (default 12)"
    )
    parser.add_argument("--draft-layers", type=int, default=3, help="of which the draft has (default 3)")
    parser.add_argument(
        "--agree", type=float, default=0.15, help="scale of what the rest adds (default 0.15)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy (default)")
    parser.add_argument("--draft-tokens", type=int, default=4, help="longest draft (default 4)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens written (default 128)")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured (default 5)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """Both in turns."""
    import numpy as np

    from ragjax.generation import Decoding, continuations
    from ragjax.interchange.folder import load
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    if options.model:
        model, draft = load(options.model), load(options.draft)
        prompts = beginnings(options, model) if options.data else options.prompt
    else:
        model, draft = constructed(options)
        prompts = np.random.default_rng(0).integers(0, VOCAB, (options.batch, 16)).tolist()
    batches = [prompts[i : i + options.batch] for i in range(0, len(prompts), options.batch)]
    asked = Decoding(
        max_new_tokens=options.new_tokens, stop_at_eos=False, draft_tokens=options.draft_tokens,
        temperature=options.temperature,
    )  # fmt: skip

    def written(batch, name: str):
        begin = time.perf_counter()
        told = continuations(model, batch, asked, draft=draft if name == "drafted" else None)
        return time.perf_counter() - begin, told

    rounds, same, speculations = [], [], []
    for turn in range(options.rounds + 1):
        seconds = {"alone": 0.0, "drafted": 0.0}
        for batch in batches:
            texts = {}
            for name in list(seconds)[:: 1 if turn % 2 == 0 else -1]:
                taken, texts[name] = written(batch, name)
                seconds[name] += taken
            same += [
                a.tokens.tolist() == b.tokens.tolist()
                for a, b in zip(texts["alone"], texts["drafted"], strict=True)
            ]
            speculations.append(texts["drafted"][0].speculation)
        rounds.append(seconds)
    # The first turn compiles.
    rounds, speculations = rounds[1:], speculations[len(batches) :]
    tokens = options.new_tokens * len(prompts)
    ratios = [one["alone"] / one["drafted"] for one in rounds]
    return {
        "tokens_per_second": {name: tokens / median(one[name] for one in rounds) for name in rounds[0]},
        "ratio": median(ratios),
        "ratios": ratios,
        "same_tokens": f"{sum(same)} of {len(same)} texts",
        "acceptance": sum(s.accepted for s in speculations) / max(1, sum(s.drafted for s in speculations)),
        "tokens_per_round": options.new_tokens * len(speculations) / sum(s.rounds for s in speculations),
        "options": vars(options),
        "machine": machine(),
    }


def beginnings(options: argparse.Namespace, model) -> list[list[int]]:
    """The first tokens of documents that have so many."""
    from ragjax.data.sources import documents

    found = []
    for text in documents(options.data):
        tokens = model.tokenizer.encode(text, add_special_tokens=False)[: options.prompt_tokens]
        found += [tokens] if len(tokens) == options.prompt_tokens else []
        if len(found) == options.prompts:
            return found
    raise SystemExit(f"{options.data}: expected {options.prompts} documents, found {len(found)} long enough")


def constructed(options: argparse.Namespace):
    """A random model whose upper layers add little, and its lower layers as a model."""
    import jax

    from ragjax.model import Model
    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig

    config = DecoderConfig(
        vocab_size=VOCAB, positions=1024, width=768, layers=options.layers, heads=12, mlp_width=3072
    )
    params, lower = init_params(config, seed=0), options.draft_layers
    layers = params["layers"]
    for out in (layers["attention"]["out"], layers["mlp"]["down"]):
        out["kernel"] = out["kernel"].at[lower:].multiply(options.agree)
    small = dataclasses.replace(config, layers=lower)
    return Model(config, params), Model(small, params | {"layers": jax.tree.map(lambda x: x[:lower], layers)})


if __name__ == "__main__":
    main()
