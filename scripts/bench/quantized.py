"""Decoding speed of a model in fewer bits beside the same in float32, in turns.

Give MODEL; without it the model is a GPT-2 124M in geometry, with random weights. Each scheme is quantized to
the nearest, tables of tokens in 8 bits, and all continue the same prompts, in alternating order; a ratio is
the median over rounds of the quotient within a round. Beside it stand the bytes of the parameters that a step
reads and the bytes of the compiled loop's temporaries, which floats of the matrices would show in.

`--device cuda` measures on a graphics card.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from turns import device_name, use


def main() -> None:
    options = parse()
    use(options.device)
    print(json.dumps(compare(options), indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="MODEL")
    parser.add_argument(
        "--schemes", nargs="+", default=["int8", "int4", "int8_activations"], help="beside float32"
    )
    parser.add_argument("--batch", type=int, default=1, help="sequences at once (default 1)")
    parser.add_argument("--layers", type=int, default=12, help="layers, without MODEL (default 12)")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens written (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured (default 5)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """All of them in turns."""
    import jax
    import numpy as np

    from ragjax.config import Quantize
    from ragjax.generation.continuation import generate_tokens
    from ragjax.quantizing import quantize

    model = of_options(options)
    models = {"float32": model}
    for scheme in options.schemes:
        models[scheme] = quantize(model, Quantize(scheme=scheme, tables="int8")).model
    prompts = np.random.default_rng(0).integers(0, model.config.vocab_size, (options.batch, 16)).tolist()
    asked = {"max_new_tokens": options.new_tokens, "stop_at_eos": False}
    for each in models.values():
        generate_tokens(each, prompts, **asked)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(options.rounds):
        for name in list(models)[:: 1 if turn % 2 == 0 else -1]:
            begin = time.perf_counter()
            generate_tokens(models[name], prompts, **asked)
            seconds[name].append(time.perf_counter() - begin)
    first, tokens = seconds["float32"], options.new_tokens * options.batch
    return {
        name: {
            "tokens_per_second": tokens / median(taken),
            "ratio": median(a / b for a, b in zip(first, taken, strict=True)),
            "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(models[name].params)),
            "temporaries": temporaries(models[name], options.batch),
        }
        for name, taken in seconds.items()
    } | {"options": vars(options), "device": device_name(options.device)}


def temporaries(model, batch: int) -> int:
    """Bytes of the temporaries of the compiled decoding loop."""
    import jax
    import jax.numpy as jnp

    from ragjax.generation.decoding import Settings, decode, prefill
    from ragjax.generation.network import laid_out

    settings = Settings(jnp.float32(0), jax.random.key(0), jnp.array([-1], jnp.int32))
    prompts, padding = jnp.ones((batch, 16), jnp.int32), jnp.zeros(batch, jnp.int32)
    state = jax.eval_shape(
        lambda p: prefill(p, prompts, padding, settings, config=model.config, room=64), model.params
    )
    network = laid_out(model.params, config=model.config)
    made = decode.lower(*network, state, jnp.int32(64), settings, config=model.config).compile()
    return made.memory_analysis().temp_size_in_bytes


def of_options(options: argparse.Namespace):
    """MODEL, or a random GPT-2."""
    from ragjax.interchange.folder import load
    from ragjax.model import Model
    from ragjax.models.decoder import init_params
    from ragjax.models.decoder_config import DecoderConfig
    from ragjax.parallel.compile_cache import keep_compiled_programs

    keep_compiled_programs()
    if options.model:
        return load(options.model, floats=True)
    config = DecoderConfig(
        vocab_size=50257, positions=1024, width=768, layers=options.layers, heads=12, mlp_width=3072
    )
    return Model(config, init_params(config, seed=0))


if __name__ == "__main__":
    main()
