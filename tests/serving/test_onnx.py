"""A server whose model runs in onnxruntime answers as any other."""

import pytest

from ragjax.config import Serve
from ragjax.generation.continuation import continuations
from ragjax.generation.onnx import OnnxSlots
from ragjax.interchange.onnx import in_onnxruntime
from ragjax.serving import Service

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def there(teacher):
    return in_onnxruntime(teacher, threads=1)


@pytest.fixture(scope="module")
def service(there):
    made = Service(Serve(queue=16, max_body=10_000))
    slots = OnnxSlots(there, count=2, room=64)
    slots.warm()
    made.add("small", there, slots)
    yield made
    made.stop()


def test_requests_at_once_write_what_each_writes_alone(ask, there):
    prompts = ["ab", "twenty-two", "x"]
    greedy = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    answers = ask(PATH, *({"prompt": prompt, **greedy} for prompt in prompts))
    expected = continuations(there, prompts, max_new_tokens=12, stop_at_eos=False)
    assert [answer.json()["choices"][0]["text"] for answer in answers] == [each.text for each in expected]


def test_it_is_told_with_its_parameters(ask, teacher):
    [told] = ask("/v1/models").json()["data"]
    assert (told["id"], told["parameters"], told["room"]) == ("small", teacher.parameters, 64)
