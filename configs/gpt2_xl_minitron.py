"""GPT-2 XL, 1.5B, shrunk to width 1280 and trained on under itself, as Minitron, on a v5e-16.

Shrink first: the student is the folder that leaves, 48 layers of 20 heads and 5120 neurons, 1.0B parameters.

    ragjax shrink openai-community/gpt2-xl gpt2-xl-1280 --width 1280 --mlp-width 5120
    ragjax compress configs/gpt2_xl_minitron.py --workdir /mnt/shared/gpt2-xl-minitron

Width and neurons went by what they put out over a calibration text; the teacher's distribution alone is the
loss, which the paper found to be enough.

A chip holds 5.19 GB of 16: 0.39 of the teacher, 1.02 of the student's parameters, gradients and moments, 3.77
of activations and the rest. The models take 10.2 GFLOP a token, 87 % of what the program does (jax 0.10.2,
libtpu 0.0.42):

    ragjax plan configs/gpt2_xl_minitron.py --topology v5e:4x4

Nothing of it was run. Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation",
https://arxiv.org/abs/2407.14679.
"""

from ragjax.config import Compress, Data, Distill, Evaluate, Mesh, Student, Teacher, Train

config = Compress(
    teacher=Teacher(model="openai-community/gpt2-xl"),
    student=Student(model="gpt2-xl-1280"),
    data=Data(train="tfds:wiki40b/en/train", validation="tfds:wiki40b/en/validation", sequence_length=1024),
    train=Train(
        steps=20_000,
        batch_size=128,
        accumulate=2,
        learning_rate=2e-4,
        warmup=500,
        dtype="bfloat16",
        remat="full",
        log_every=50,
        checkpoint_every=1000,
        evaluate_every=1000,
    ),
    distill=Distill(forward_kl=1.0, cross_entropy=0.0, chunk_tokens=512),
    evaluate=Evaluate(stride=512, max_tokens=500_000, batch_size=16),
    mesh=Mesh(data=1, fsdp=-1, tensor=1),
)
