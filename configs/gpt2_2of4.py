"""GPT-2 124M with two of every four weights left, which recovers under its dense self, on a v5e-8.

Masks are chosen once, in the first step, by magnitude, and stay; the rest of the training is recovery, from
the dense model's distribution and a little of the text. To start from a better choice, prune first, and
leave the sparsity to the zeros that are there:

    ragjax prune openai-community/gpt2 gpt2-wanda --method wanda --pattern n_of_m
    ragjax compress configs/gpt2_2of4.py --student.model gpt2-wanda
        --sparsity.pattern tensor --sparsity.target 0

A chip holds 10.01 GB of 16: 0.50 of the teacher, 2.08 of the student's parameters, gradients, moments and
masks, 7.44 of activations and the rest. The models take 1.14 GFLOP a token (jax 0.10.2, libtpu 0.0.42):

    ragjax plan configs/gpt2_2of4.py --topology v5e:2x4

Nothing of it was run. 2:4 makes nothing faster on a TPU; it is smaller on disk by `ragjax export --format
bitmask`.
"""

from ragjax.config import Compress, Data, Distill, Evaluate, Sparsity, Student, Teacher, Train

config = Compress(
    teacher=Teacher(model="openai-community/gpt2"),
    student=Student(),
    data=Data(train="tfds:wiki40b/en/train", validation="tfds:wiki40b/en/validation", sequence_length=1024),
    train=Train(
        steps=10_000,
        batch_size=64,
        accumulate=2,
        learning_rate=2e-4,
        warmup=200,
        dtype="bfloat16",
        log_every=50,
        checkpoint_every=1000,
        evaluate_every=1000,
    ),
    sparsity=Sparsity(pattern="n_of_m", n=2, m=4, schedule="one_shot", start=0, stop=0),
    distill=Distill(forward_kl=1.0, cross_entropy=0.1, chunk_tokens=512),
    evaluate=Evaluate(stride=512, max_tokens=500_000),
)
