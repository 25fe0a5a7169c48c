"""GPT-2 XL, 1.5B, to half its layers and half of their weights, on a v5e-16.

Runs the same on every host of the slice, in a shared folder that all of them can write:

    ragjax compress configs/gpt2_xl_tpu.py --workdir /mnt/shared/gpt2-xl

25 heads do not split over a tensor axis, so parameters, moments and masks are split over all 16 chips
(`mesh.fsdp`), and so is the batch. What the step takes of a chip is known without one, by compiling for it:
5.08 of 16 GB, 3.81 of them activations; the models' operations are 8.80 GFLOP a token, 89 % of what the
program does (jax 0.10.2, libtpu 0.0.42).

    ragjax plan configs/gpt2_xl_tpu.py --topology v5e:4x4

Models are read onto the chips tensor by tensor and measured there, split as in training. Not run yet:
neither speed nor quality has been measured.
"""

from ragjax.config import Compress, Data, Distill, Evaluate, Mesh, Sparsity, Student, Teacher, Train

config = Compress(
    teacher=Teacher(model="openai-community/gpt2-xl"),
    student=Student(layers=24),
    data=Data(train="tfds:wiki40b/en/train", validation="tfds:wiki40b/en/validation", sequence_length=1024),
    train=Train(
        steps=50_000,
        batch_size=128,
        accumulate=2,
        learning_rate=2e-4,
        warmup=1000,
        dtype="bfloat16",
        remat="full",
        log_every=50,
        checkpoint_every=1000,
        evaluate_every=1000,
    ),
    sparsity=Sparsity(target=0.5, start=1000, stop=25_000, every=100),
    distill=Distill(forward_kl=1.0, cross_entropy=0.25, chunk_tokens=512),
    evaluate=Evaluate(stride=512, max_tokens=500_000, batch_size=16),
    mesh=Mesh(data=1, fsdp=-1, tensor=1),
)
