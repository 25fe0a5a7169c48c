"""Train a small GPT on Python's own documentation, then compress it: half the layers, 70 % zeros.

A four-layer teacher is trained from scratch, pruned to two layers and 30 % of their weights while it is
distilled, and compared with a control that goes the same way without the teacher's loss.

Needs two CPU cores, 2 GB of memory and no network; takes three to five minutes. Perplexity over the seeds
0, 1 and 2: teacher 51.0, 51.0, 38.1; student 58.4, 56.3, 43.9; control 64.1, 61.5, 49.1.
"""

from ragjax.config import Architecture, Compress, Data, Distill, Evaluate, Sparsity, Student, Teacher, Train

config = Compress(
    teacher=Teacher(
        architecture=Architecture(layers=4, width=128, heads=4, positions=128),
        train=Train(
            steps=2000,
            batch_size=8,
            learning_rate=4e-3,
            warmup=50,
            log_every=100,
            evaluate_every=500,
            checkpoint_every=500,
        ),
    ),
    student=Student(layers=2),
    data=Data(train="builtin:python", sequence_length=128, vocab_size=1024),
    train=Train(
        steps=160,
        batch_size=8,
        learning_rate=4e-3,
        warmup=10,
        log_every=20,
        evaluate_every=80,
        checkpoint_every=80,
    ),
    sparsity=Sparsity(target=0.7, stop=80, every=10),
    distill=Distill(forward_kl=1.0, cross_entropy=0.25),
    evaluate=Evaluate(max_tokens=40_000),
)
