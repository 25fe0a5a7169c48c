"""Bytes and perplexity of a model in onnxruntime, by the type of its weights.

    python scripts/fetch_smollm2.py
    python scripts/onnx_table.py ~/.cache/ragjax/smollm2

Windows of held-out text are fed a token at a time, as a text is written; every token but the first of a
window is scored. Bytes are those of the graph and of its constants. The row "jax" is the same in JAX.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="MODEL")
    parser.add_argument("--data", default="builtin:python", help="URI; its validation side is read")
    parser.add_argument("--windows", type=int, default=8, help="side by side (default 8)")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens in one (default 256)")
    options = parser.parse_args()

    import numpy as np

    import ragjax
    from ragjax.data import open_corpora
    from ragjax.data.batches import Batches
    from ragjax.interchange.onnx import export_onnx, load_onnx
    from ragjax.interchange.onnx.weights import PRECISIONS

    model = ragjax.load(options.model)
    _, text = open_corpora(options.data, None, model.tokenizer)
    batches = Batches(corpus=text, batch_size=1, sequence_length=options.sequence_length)
    tokens = np.asarray(batches.at(np.arange(options.windows)).tokens, np.int32)

    nats = np.mean([cost(model(row[None, :-1])[0], row[1:]) for row in tokens])
    print(f"{'weights':<8} {'MB':>8} {'perplexity':>11}")
    print(f"{'jax':<8} {4 * model.parameters / 1e6:>8.1f} {math.exp(nats):>11.3f}")
    for dtype in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            out = export_onnx(model, Path(folder) / dtype, dtype=dtype)
            size = sum(file.stat().st_size for file in out.glob("model.onnx*"))
            nats = written_cost(load_onnx(out), tokens)
        print(f"{dtype:<8} {size / 1e6:>8.1f} {math.exp(nats):>11.3f}", flush=True)


def written_cost(there, tokens) -> float:
    """Mean nats of the tokens that follow the first of each row."""
    import numpy as np

    from ragjax.generation.onnx.network import Network

    network = Network(there, batch=len(tokens), room=tokens.shape[1])
    told = [cost(network.read(tokens[:, :1].tolist()), tokens[:, 1])]
    for place in range(1, tokens.shape[1] - 1):
        lengths = np.full(len(tokens), place + 1)
        told.append(cost(network.feed(tokens[:, place], lengths), tokens[:, place + 1]))
    return float(np.mean(told))


def cost(scores, following) -> float:
    """Mean nats of the tokens that follow."""
    import numpy as np

    scores = np.asarray(scores, np.float64)
    highest = scores.max(-1)
    total = highest + np.log(np.exp(scores - highest[:, None]).sum(-1))
    return float(np.mean(total - scores[np.arange(len(following)), following]))


if __name__ == "__main__":
    main()
