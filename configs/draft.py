"""A draft for speculative decoding: one layer, distilled from the eight of the model it drafts for.

Teacher and draft learn from Python's own documentation, offline. How often the teacher keeps what the draft
proposes, and how much faster it writes so, is in docs/generation.md. Takes ten to twenty minutes on two
CPU cores, and 2 GB of memory:

    ragjax compress configs/draft.py
    ragjax generate runs/draft/teacher --draft runs/draft/student --prompt 'Return a list'
"""

from ragjax.config import Architecture, Compress, Data, Distill, Evaluate, Student, Teacher, Train

config = Compress(
    teacher=Teacher(
        architecture=Architecture(layers=8, width=512, heads=8, positions=256),
        train=Train(
            steps=300,
            batch_size=16,
            learning_rate=1e-3,
            warmup=50,
            dtype="bfloat16",
            log_every=25,
            evaluate_every=100,
            checkpoint_every=100,
        ),
    ),
    student=Student(layers=1, control=False),
    data=Data(train="builtin:python", sequence_length=128, vocab_size=2048),
    train=Train(
        steps=250,
        batch_size=16,
        learning_rate=1e-3,
        warmup=20,
        dtype="bfloat16",
        log_every=25,
        evaluate_every=100,
        checkpoint_every=100,
    ),
    distill=Distill(forward_kl=1.0, cross_entropy=0.0),
    evaluate=Evaluate(max_tokens=20_000),
)
