"""What a cached teacher leaves out: losses of a student under its teacher's k likeliest tokens and the rest.

    python scripts/cache_gap.py TEACHER STUDENT --k 16 64 128

Beside the loss under the whole distribution, over windows of held-out text: how much of it is left where all
but the k likeliest tokens are one outcome (never more than all of it), the probability of that outcome, and
the bytes a token that `ragjax cache-teacher` would keep.
"""

from __future__ import annotations

import argparse
import json


def main() -> None:
    options = parse()
    found = measured(options)
    print(json.dumps(found) if options.json else table(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", help="MODEL")
    parser.add_argument("student", help="MODEL of the same vocabulary")
    parser.add_argument("--k", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--data", default="builtin:python", help="URI; its validation side is read")
    parser.add_argument("--losses", nargs="+", default=["forward_kl", "reverse_kl", "jensen_shannon"])
    parser.add_argument("--windows", type=int, default=16, help="sequences (default 16)")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens in one (default 256)")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    import ragjax
    from ragjax.data import open_corpora
    from ragjax.data.batches import Batches
    from ragjax.distillation.known import binned, likeliest
    from ragjax.distillation.losses import LOSSES, centred, over_tokens

    teacher, student = ragjax.load(options.teacher), ragjax.load(options.student)
    _, text = open_corpora(options.data, None, teacher.tokenizer)
    tokens = Batches(corpus=text, batch_size=1, sequence_length=options.sequence_length).at(
        np.arange(options.windows)
    ).tokens  # fmt: skip

    @jax.jit
    def losses(q, p):
        q, p = centred(q[0]), centred(p[0])
        mask = jnp.ones(len(p), bool)
        rows = {"all": (q, p, 0.0)}
        for k in options.k:
            kept = likeliest(p, k)
            rows[str(k)] = binned(q, kept.ids), kept.log_probs, jnp.exp(kept.log_probs[:, -1]).mean()
        return {
            k: {name: over_tokens(LOSSES[name], q, p, mask) for name in options.losses} | {"rest": rest}
            for k, (q, p, rest) in rows.items()
        }

    sums = [jax.device_get(losses(student(row[None]), teacher(row[None]))) for row in tokens]
    mean = jax.tree.map(lambda *each: float(np.mean(each)), *sums)
    size = 2 if teacher.config.vocab_size <= 1 << 16 else 4
    whole = mean.pop("all")
    rows = [
        {
            "k": int(k), "bytes_per_token": int(k) * size + (int(k) + 1) * 2, "rest": row["rest"],
            "of_whole": {name: row[name] / whole[name] for name in options.losses},
        }
        for k, row in mean.items()
    ]  # fmt: skip
    del whole["rest"]
    return {"tokens": int(tokens.size), "whole": whole, "rows": rows}


def table(found: dict) -> str:
    names = list(found["whole"])
    whole = ", ".join(f"{name} {found['whole'][name]:.4f}" for name in names)
    lines = [
        f"{found['tokens']:,} tokens; under the whole distribution, in nats: {whole}\n",
        f"| k | bytes a token | the rest's probability | {' | '.join(names)} |",
        f"|--:|--:|--:|{'--:|' * len(names)}",
    ]
    for row in sorted(found["rows"], key=lambda row: row["k"]):
        shares = " | ".join(f"{row['of_whole'][name]:.1%}" for name in names)
        lines.append(f"| {row['k']} | {row['bytes_per_token']} | {row['rest']:.2%} | {shares} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
