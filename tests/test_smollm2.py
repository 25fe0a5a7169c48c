"""A real language model through the whole house; `python scripts/fetch_smollm2.py` fetches it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ragjax
from ragjax.evaluation.perplexity import perplexity
from ragjax.generation import generate_tokens
from ragjax.interchange.gguf import read_gguf, write_gguf

pytestmark = pytest.mark.slow

PROSE = """\
A lighthouse is a tower with a strong light at its top, built to guide ships at sea. The light warns \
sailors of rocks and shallow water, and marks the entrance to a harbour. The best known lighthouse \
of the ancient world stood on the island of Pharos, near the Egyptian city of Alexandria. It was \
built in the third century BC and was counted among the Seven Wonders of the World. For many \
centuries the light came from open fires of wood or coal, which a keeper had to feed through the \
night. Oil lamps with mirrors behind them came into use in the eighteenth century. In 1822 the \
French physicist Augustin Fresnel invented a lens made of many rings of glass, which bends the rays \
of a lamp into one narrow beam that can be seen from more than thirty kilometres away. Each \
lighthouse flashes in a pattern of its own, so that sailors can tell where they are. In the \
twentieth century most of the lamps became electric, and the keepers were replaced by machines. \
Today ships find their way by satellite, and many lighthouses have been turned into museums or \
hotels, but they are still kept alight in many parts of the world, because a light on the shore \
never fails when the electronics do."""
"""Plain encyclopedic prose, which no model was trained on."""


@pytest.fixture(scope="module")
def model(smollm2):
    return ragjax.load(smollm2)


def of_text(model, text):
    """The perplexity of a text, every token of which but the first is scored."""
    tokens = np.array(model.tokenizer.encode(text), np.int32)
    return perplexity(model, tokens, sequence_length=512, stride=512, batch_size=1).perplexity


def test_fluent_prose_is_likelier_than_its_words_shuffled(model):
    words = np.random.default_rng(0).permutation(PROSE.split())
    fluent, shuffled = of_text(model, PROSE), of_text(model, " ".join(words))
    assert 5 < fluent < 30
    assert shuffled > 200


def test_it_knows_the_capital_of_france(model):
    (answer,) = ragjax.generate(model, ["The capital of France is"], max_new_tokens=8)
    assert answer.startswith(" Paris.")


def test_torch_transformers_computes_the_same_from_the_folder(model, smollm2):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokens = model.tokenizer.encode(PROSE)
    assert tokenizer.encode(PROSE) == tokens
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(np.asarray(model(jnp.array([tokens])))[0], expected, atol=1e-3)
    prompt = tokenizer.encode("The lens that Fresnel invented")
    with torch.no_grad():
        whole = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0]
    (ours,) = generate_tokens(model, [prompt], max_new_tokens=24)
    assert ours.tolist() == whole[len(prompt) :].tolist()


def test_it_goes_through_a_gguf_file_unchanged(model, tmp_path):
    back = read_gguf(write_gguf(model, tmp_path / "m.gguf").path)
    assert back.config == model.config
    jax.tree.map(np.testing.assert_array_equal, back.params, model.params)
    assert back.tokenizer.encode(PROSE) == model.tokenizer.encode(PROSE)
    assert back.tokenizer.chat_template == model.tokenizer.chat_template


def test_eight_bits_cost_less_than_a_percent_of_perplexity(model, tmp_path):
    file = write_gguf(model, tmp_path / "m.gguf", dtype="q8_0")
    assert file.tensors == {"Q8_0": 211, "F32": 61}
    exact, rounded = of_text(model, PROSE), of_text(read_gguf(file.path), PROSE)
    assert abs(rounded / exact - 1) < 0.01
    assert rounded != exact
