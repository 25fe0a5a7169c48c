"""OPT-175B to OPT-13B on a v5p-128, 64 chips: what the largest of the family would take.

    ragjax compress configs/opt_175b_to_13b.py --teacher.model FOLDER --workdir /mnt/shared/opt-13b

Meta hands the 175B out on request; FOLDER is a Hugging Face folder of it with safetensors. Every matrix is
split over all chips, over four one way (`mesh.tensor`) and over sixteen the other (`mesh.fsdp`).

A chip holds 27.06 GB of 95: 10.95 of the teacher, 3.24 of the student's parameters, gradients and moments,
12.86 of activations and the rest. The models take 441 GFLOP a token, 96 % of what the program does, and by
the compiler's estimate its kernels 8.14 s a step, 48 % of the chips' peak, collectives apart (jax 0.10.2,
libtpu 0.0.42):

    ragjax plan configs/opt_175b_to_13b.py --topology v5p:4x4x4

Nothing of it was run.
"""

from ragjax.config import Compress, Data, Distill, Evaluate, Mesh, Student, Teacher, Train

config = Compress(
    teacher=Teacher(model="facebook/opt-175b"),
    student=Student(model="facebook/opt-13b", control=False),
    data=Data(train="tfds:c4/en/train", validation="tfds:c4/en/validation", sequence_length=2048),
    train=Train(
        steps=20_000,
        batch_size=128,
        accumulate=4,
        learning_rate=1e-4,
        warmup=500,
        dtype="bfloat16",
        remat="full",
        log_every=20,
        checkpoint_every=500,
        evaluate_every=500,
    ),
    distill=Distill(forward_kl=1.0, cross_entropy=0.25, chunk_tokens=512),
    evaluate=Evaluate(max_tokens=500_000, batch_size=16),
    mesh=Mesh(data=1, fsdp=16, tensor=4),
)
