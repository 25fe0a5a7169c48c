"""GPT-2 124M to six layers and 82M parameters, as DistilGPT2, on one host.

The student starts as teacher layers 0, 2, 4, 7, 9 and 11 and learns from the teacher's distribution, its
hidden states and the text.

Needs the text prepared once, about 18 GB, without TensorFlow:

    tfds build wiki40b/en --file_format=array_record

and a host with one or more accelerators of 16 GB or more, such as a v5e-8; a batch is split over all of
them. Each holds 6.14 GB: 0.50 of the teacher, 1.31 of the student's parameters, gradients and moments, 4.33
of activations and the rest; the models take 0.83 GFLOP a token (jax 0.10.2, libtpu 0.0.42):

    ragjax plan configs/gpt2_distil.py --topology v5e:2x4

For a look on a laptop, give it your own text and a few steps:

    ragjax compress configs/gpt2_distil.py --data.train "text:books/*.txt" --data.validation text:held_out.txt
        --train.steps 200 --train.batch-size 4 --train.dtype float32

Its quality has not been measured here. DistilGPT2 reached 21.1 against its teacher's 16.3 on WikiText-103,
both fine-tuned there.
"""

from ragjax.config import Compress, Data, Distill, Evaluate, Student, Teacher, Train

config = Compress(
    teacher=Teacher(model="openai-community/gpt2"),
    student=Student(layers=(0, 2, 4, 7, 9, 11)),
    data=Data(train="tfds:wiki40b/en/train", validation="tfds:wiki40b/en/validation", sequence_length=1024),
    train=Train(
        steps=20_000,
        batch_size=64,
        accumulate=2,
        learning_rate=5e-4,
        warmup=500,
        weight_decay=0.1,
        dtype="bfloat16",
        log_every=50,
        checkpoint_every=1000,
        evaluate_every=1000,
    ),
    distill=Distill(forward_kl=1.0, cross_entropy=0.5, hidden_mse=0.01, temperature=2.0, chunk_tokens=512),
    evaluate=Evaluate(stride=512, max_tokens=500_000),
)
