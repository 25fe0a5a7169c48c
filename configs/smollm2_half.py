"""SmolLM2-135M to half its depth on a laptop, from a teacher that runs once.

The student keeps 15 of 30 layers, evenly with both ends, and learns from the teacher's 64 likeliest tokens
and the rest, which are kept on disk; the control learns from the same text alone. What came of it is in
docs/distillation.md. Fetch the model, run the teacher, train:

    pip install '.[gguf]' && python scripts/fetch_smollm2.py
    ragjax cache-teacher configs/smollm2_half.py caches/smollm2
    ragjax compress configs/smollm2_half.py --teacher.cache caches/smollm2
"""

from pathlib import Path

from ragjax.config import Compress, Data, Distill, Evaluate, Student, Teacher, Train

config = Compress(
    teacher=Teacher(model=str(Path("~/.cache/ragjax/smollm2").expanduser())),
    student=Student(layers=15),
    data=Data(train="builtin:python", sequence_length=256, fixed_cuts=True),
    train=Train(
        steps=100,
        batch_size=8,
        learning_rate=5e-4,
        warmup=10,
        weight_decay=0.01,
        dtype="bfloat16",
        log_every=5,
        evaluate_every=50,
        checkpoint_every=50,
    ),
    distill=Distill(forward_kl=1.0, cross_entropy=1.0),
    evaluate=Evaluate(sequence_length=256, stride=256, max_tokens=16_384, speed_rounds=3),
)
