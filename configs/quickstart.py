"""Quickstart: train a small GPT on Python's own documentation, then halve it.

What   a 6-layer teacher is trained from scratch, then pruned to half its layers and half of their
       weights while it is distilled; a control goes the same way without the teacher's loss.
Needs  two CPU cores, 2 GB of memory, no network.
Time   about five minutes.
"""

from ragjax.config import Architecture, Compress, Data, Distill, Evaluate, Sparsity, Student, Teacher, Train

config = Compress(
    teacher=Teacher(
        architecture=Architecture(layers=6, width=128, heads=4, positions=128),
        train=Train(steps=600, batch_size=16, learning_rate=3e-3, warmup=40, evaluate_every=200),
    ),
    student=Student(layers=3),
    data=Data(train="builtin:python", sequence_length=128, vocab_size=2048),
    train=Train(steps=300, batch_size=16, learning_rate=2e-3, warmup=20, evaluate_every=100),
    sparsity=Sparsity(target=0.5, schedule="cubic", stop=150, every=10),
    distill=Distill(forward_kl=1.0, cross_entropy=0.0, temperature=1.0),
    evaluate=Evaluate(max_tokens=40_000),
)
