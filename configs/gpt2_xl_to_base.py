"""GPT-2 XL, 1.5B, to GPT-2 base, 124M, on instructions: the setting of MiniLLM, on a v5e-16.

The student is a model of its own, GPT-2 base, and follows where it finds text likely itself (reverse KL).
The loss is that of the responses. The teacher should know the task: train it on the same pairs first, and
give it by --teacher.model. Make them of databricks-dolly-15k, a prompt and its completion a line:

    import json
    from datasets import load_dataset
    with open("dolly.jsonl", "w") as file:
        for row in load_dataset("databricks/databricks-dolly-15k", split="train"):
            asked = "\\n\\n".join(row[name] for name in ("instruction", "context") if row[name])
            pair = {"prompt": f"{asked}\\n\\nResponse:\\n", "completion": row["response"]}
            file.write(json.dumps(pair) + "\\n")

Instead of those responses a student may learn from the teacher's own:

    ragjax generate TEACHER --dataset written.jsonl --prompts jsonl:dolly.jsonl#prompt,completion
    ragjax compress configs/gpt2_xl_to_base.py --data.train jsonl:written.jsonl#prompt,completion,ended

A chip holds 3.03 GB of 16: 0.39 of the teacher, 0.13 of the student's parameters, gradients and moments,
2.51 of activations and the rest. The models take 4.07 GFLOP a token (jax 0.10.2, libtpu 0.0.42):

    ragjax plan configs/gpt2_xl_to_base.py --topology v5e:4x4

Nothing of it was run. Gu et al., https://arxiv.org/abs/2306.08543, report Rouge-L of 24.6 on Dolly for this
pair, and 22.8 for plain distillation; theirs learns from what the student writes. A part of that is had by
--on-policy.share 1 --on-policy.teacher-share 0.2: see docs/distillation.md.
"""

from ragjax.config import Compress, Data, Distill, Evaluate, Mesh, Student, Teacher, Train

config = Compress(
    teacher=Teacher(model="openai-community/gpt2-xl"),
    student=Student(model="openai-community/gpt2"),
    data=Data(train="jsonl:dolly.jsonl#prompt,completion", sequence_length=512, pack_pairs=True),
    train=Train(
        steps=5000,
        batch_size=64,
        learning_rate=5e-4,
        warmup=100,
        weight_decay=0.01,
        dtype="bfloat16",
        log_every=20,
        checkpoint_every=500,
        evaluate_every=500,
    ),
    distill=Distill(forward_kl=0.0, reverse_kl=1.0, cross_entropy=0.25, chunk_tokens=512),
    evaluate=Evaluate(sequence_length=512, max_tokens=200_000),
    mesh=Mesh(data=1, fsdp=-1, tensor=1),
)
