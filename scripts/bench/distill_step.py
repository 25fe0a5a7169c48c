"""Tokens per second and memory of one full distillation step, beside the same step in torch.

The step is teacher forward, student forward and backward, 0.9 KL(teacher || student) + 0.1 cross-entropy
over the whole vocabulary, clipping to global norm 1 and AdamW; the teacher is GPT-2 124M, the student has six
of its twelve layers, both from a random start, without dropout, on random tokens. Rows:

    in_step        ragjax, the teacher in the step
    cached         ragjax, of the teacher its 64 likeliest tokens and the rest, which come with the batch
    plain          ragjax, cross-entropy alone
    teacher        ragjax, the teacher's forward pass alone, logits of all tokens
    torch          torch eager (transformers, sdpa, AdamW), full logits of both, `kl_div`
    torch_chunked  the same, scores and loss in eight chunks of tokens, as torchtune has it

Bfloat16 is autocast over float32 parameters in torch, as in ragjax. Each row runs in a process of its own and
sleeps while the others work; a round is two steps of each, of which the second is timed, in alternating
order, and a ratio is the median over rounds of the quotient within a round. Peak memory is the growth of the
process's resident set above what it is after imports, compilation apart.

With --device cuda all of it is done on a graphics card; peak memory is then what each takes of the card, and
--compile-torch compiles torch's models.

Aims, on CPU: in_step at least 1.4 (float32) and 1.2 (bfloat16) times as fast as torch; cached at most 1.1
times plain; in_step at most 1.05 times plain and teacher together; the loss head's temporaries (--head)
under 300 MB.
"""

from __future__ import annotations

import argparse
import json
from statistics import median

from turns import JaxCard, Memory, Peer, Resident, TorchCard, device_name, serve, use

WIDTH, HEADS, VOCAB, TEACHER_LAYERS, STUDENT_LAYERS = 768, 12, 50257, 12, 6
KL, CROSS_ENTROPY, KEPT, CHUNKS = 0.9, 0.1, 64, 8
OURS = ("in_step", "cached", "plain", "teacher")
THEIRS = ("torch", "torch_chunked")
HEAD_TOKENS = (1024, 4096, 16_384, 65_536)
RATIOS = {
    "torch / in_step": (("torch",), ("in_step",)),
    "torch_chunked / in_step": (("torch_chunked",), ("in_step",)),
    "cached / plain": (("cached",), ("plain",)),
    "in_step / (plain + teacher)": (("in_step",), ("plain", "teacher")),
}


def main() -> None:
    options = parse()
    use(options.device)
    if options.peer:
        start = torch_peer if options.peer in THEIRS else teacher_peer if options.peer == "teacher" else peer
        serve(lambda: start(options))
        return
    result = head(options) if options.head else compare(options)
    print(json.dumps(result, indent=None if options.json else 2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2, help="sequences in a step (default 2)")
    parser.add_argument("--length", type=int, default=512, help="tokens in a sequence (default 512)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (default cpu)")
    parser.add_argument("--compile-torch", action="store_true", help="torch.compile torch's networks")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each that are timed (default 7)")
    parser.add_argument("--chunk-tokens", type=int, default=128, help="distill.chunk_tokens (default 128)")
    parser.add_argument(
        "--rows", nargs="+", choices=OURS + THEIRS, default=OURS + THEIRS, help="default: all"
    )
    parser.add_argument(
        "--head", action="store_true", help="instead: temporaries of the compiled loss head, 1k to 64k tokens"
    )
    parser.add_argument("--topology", help="with --head: compile for a chip of this slice, such as v5e:2x2")
    parser.add_argument("--json", action="store_true", help="print the result as one line")
    parser.add_argument("--peer", choices=OURS + THEIRS, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(options: argparse.Namespace) -> dict:
    """All rows in turns."""
    peers = {name: Peer(name) for name in options.rows}
    rounds: list[dict] = []
    for number in range(options.rounds):
        order = list(peers) if number % 2 == 0 else list(peers)[::-1]
        rounds.append({name: peers[name].ask_warm("step") for name in order})
    closing = {name: one.close() for name, one in peers.items()}

    def ratio(above: tuple[str, ...], below: tuple[str, ...], what: str) -> float:
        return round(
            median(sum(r[n][what] for n in above) / sum(r[n][what] for n in below) for r in rounds), 3
        )

    tokens = options.batch * options.length
    return {
        "geometry": {
            "teacher_layers": TEACHER_LAYERS, "student_layers": STUDENT_LAYERS, "width": WIDTH,
            "heads": HEADS, "vocab_size": VOCAB,
        },
        "batch": options.batch, "length": options.length, "dtype": options.dtype, "rounds": options.rounds,
        "machine": device_name(options.device),
        "torch_compiled": options.compile_torch,
        "versions": {k: v for c in closing.values() for k, v in c["versions"].items()},
        "rows": {
            name: {
                "tokens_per_second": round(tokens / median(r[name]["seconds"] for r in rounds), 1),
                "seconds": [round(r[name]["seconds"], 3) for r in rounds],
                "cpu_seconds": round(median(r[name]["cpu_seconds"] for r in rounds), 3),
                "peak_memory_mb": round(closing[name]["peak_mb"]),
            }
            for name in peers
        },
        "ratios": {
            name: {what: ratio(*sides, what) for what in ("seconds", "cpu_seconds")}
            for name, sides in RATIOS.items()
            if {*sides[0], *sides[1]} <= peers.keys()
        },
    }  # fmt: skip


def model(layers: int, length: int):
    """Shape of a GPT-2 of width 768."""
    from ragjax.models.decoder_config import DecoderConfig

    return DecoderConfig(VOCAB, max(1024, length), WIDTH, layers, HEADS, 4 * WIDTH)


def peer(options: argparse.Namespace):
    """One of our steps, compiled and run twice."""
    import jax
    import numpy as np

    from ragjax.config import Distill, Mesh, Train
    from ragjax.data.batches import Batch
    from ragjax.distillation.known import Likeliest
    from ragjax.distillation.objective import Objective
    from ragjax.models.decoder import init_params
    from ragjax.parallel.mesh import make_mesh
    from ragjax.parallel.rules import place
    from ragjax.training.optimizer import make_optimizer
    from ragjax.training.state import init_state
    from ragjax.training.step import make_step

    memory = Resident() if options.device == "cpu" else JaxCard()
    student, teacher = (model(layers, options.length) for layers in (STUDENT_LAYERS, TEACHER_LAYERS))
    mesh = make_mesh(Mesh(), jax.devices()[:1])
    weights = (0.0, 1.0) if options.peer == "plain" else (KL, CROSS_ENTROPY)
    losses = Distill(forward_kl=weights[0], cross_entropy=weights[1], chunk_tokens=options.chunk_tokens)
    runs = options.peer == "in_step"
    frozen = (place(init_params(teacher, seed=1), mesh),) if runs else ()
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCAB, (1, options.batch, options.length + 1), np.int32)
    batch = Batch(text[..., :-1], text[..., 1:], np.ones(text[..., 1:].shape, np.float32))
    if options.peer == "cached":
        first = rng.integers(0, VOCAB - KEPT, (*batch.tokens.shape, 1), np.int32)
        likely = np.log(rng.dirichlet(np.ones(KEPT + 1), batch.tokens.shape)).astype(np.float32)
        batch = batch._replace(known=Likeliest(first + np.arange(KEPT, dtype=np.int32), likely))
    objective = Objective(student, (teacher,) if runs else (), losses, dtype=jax.numpy.dtype(options.dtype))
    optimizer = make_optimizer(Train(dtype=options.dtype))
    state = init_state(init_params(student, seed=0), optimizer, mesh)
    with jax.set_mesh(mesh):
        step = make_step(objective, optimizer, clip=1.0).lower(state, frozen, batch).compile()

    def once() -> None:
        nonlocal state
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready((state, metrics))

    return measured(once, memory, {"jax": jax.__version__})


def teacher_peer(options: argparse.Namespace):
    """The teacher's logits, compiled and run twice."""
    import jax
    import numpy as np

    from ragjax.models.decoder import init_params, logits
    from ragjax.models.run import run_decoder

    memory = Resident() if options.device == "cpu" else JaxCard()
    config = model(TEACHER_LAYERS, options.length)
    params = init_params(config, seed=1)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (options.batch, options.length), np.int32)

    @jax.jit
    def forward(params, tokens):
        hidden = run_decoder(config, params, tokens, dtype=jax.numpy.dtype(options.dtype)).hidden
        return logits(params, hidden, config)

    def once() -> None:
        jax.block_until_ready(forward(params, tokens))

    return measured(once, memory, {"jax": jax.__version__})


def torch_peer(options: argparse.Namespace):
    """The same step in torch eager, run twice."""
    import torch
    import transformers
    from torch.nn import functional

    memory = Resident() if options.device == "cpu" else TorchCard()
    torch.manual_seed(0)
    torch.set_default_device(options.device)

    def network(layers: int):
        config = transformers.GPT2Config(
            n_layer=layers, n_positions=max(1024, options.length), resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, use_cache=False,
        )  # fmt: skip
        made = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
        if options.compile_torch:
            made.transformer.compile()
        return made

    student, teacher = network(STUDENT_LAYERS).train(), network(TEACHER_LAYERS).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    text = torch.randint(0, VOCAB, (options.batch, options.length + 1))
    tokens, targets = text[:, :-1], text[:, 1:].reshape(-1)

    def straight():
        with torch.no_grad():
            taught = teacher(tokens).logits.flatten(0, 1).float()
        scores = student(tokens).logits.flatten(0, 1).float()
        kl = functional.kl_div(
            functional.log_softmax(scores, -1), functional.log_softmax(taught, -1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        return KL * kl + CROSS_ENTROPY * functional.cross_entropy(scores, targets)

    def chunked():
        with torch.no_grad():
            taught = teacher.transformer(tokens).last_hidden_state.flatten(0, 1)
        hidden = student.transformer(tokens).last_hidden_state.flatten(0, 1)
        loss = 0.0
        parts = zip(*(x.chunk(CHUNKS) for x in (hidden, taught, targets)), strict=True)
        for own, other, wanted in parts:
            scores = student.lm_head(own).float()
            with torch.no_grad():
                likely = functional.softmax(teacher.lm_head(other).float(), -1)
            # Without the teacher's entropy, which has no gradient.
            kl = -(likely * functional.log_softmax(scores, -1)).sum()
            loss = loss + KL * kl + CROSS_ENTROPY * functional.cross_entropy(scores, wanted, reduction="sum")
        return loss / targets.numel()

    compute = straight if options.peer == "torch" else chunked
    bfloat16 = options.dtype == "bfloat16"

    def once() -> None:
        with torch.autocast(options.device, torch.bfloat16, enabled=bfloat16):
            loss = compute()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if options.device == "cuda":
            torch.cuda.synchronize()

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return measured(once, memory, versions)


def measured(once, memory: Memory, versions: dict[str, str]):
    """What a peer serves: the step, after it was taken twice, and its peak memory at the end."""
    once()
    memory.forget_peak()
    once()
    return {"step": once}, lambda: {"peak_mb": memory.peak_mb(), "versions": versions}


def head(options: argparse.Namespace) -> dict:
    """Bytes of temporaries of the loss over the vocabulary and its gradients, compiled alone."""
    import jax
    import jax.numpy as jnp

    from ragjax.distillation.vocabulary import Head, vocabulary_loss
    from ragjax.planning.chips import slice_named
    from ragjax.planning.tpu_compiler import devices

    chip = devices(slice_named(options.topology))[0] if options.topology else jax.devices("cpu")[0]
    where = jax.sharding.SingleDeviceSharding(chip)
    rows = model(STUDENT_LAYERS, 1024).padded_vocab_size

    def loss(student, teacher, targets, weights):
        return vocabulary_loss(
            student, targets, weights, vocab_size=VOCAB, teachers=(teacher,),
            coefficients={"cross_entropy": CROSS_ENTROPY, "forward_kl": KL},
            chunk_tokens=options.chunk_tokens,
        )  # fmt: skip

    def shape(*sizes: int, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

    found = {}
    for tokens in HEAD_TOKENS:
        batch = (tokens // 1024, 1024)
        one = Head(shape(*batch, WIDTH, dtype=jnp.dtype(options.dtype)), shape(rows, WIDTH))
        program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(
            one, one, shape(*batch, dtype=jnp.int32), shape(*batch)
        )
        memory = program.compile().memory_analysis()
        found[str(tokens)] = round(memory.temp_size_in_bytes / 1e6, 1)
    return {"temporaries_mb": found, "dtype": options.dtype, "device": options.topology or "cpu",
            "chunk_tokens": options.chunk_tokens}  # fmt: skip


if __name__ == "__main__":
    main()
