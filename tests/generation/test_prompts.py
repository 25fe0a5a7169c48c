from dataclasses import replace

import pytest

from ragjax.data.tokenizer import encode_prompts
from ragjax.generation import generate, generate_tokens, stream
from ragjax.model import Model
from ragjax.models.decoder import init_params
from ragjax.models.decoder_config import Rotary


@pytest.fixture(scope="module")
def spaced_model(tiny_config, sentencepiece_tokenizer):
    """A random Llama over a tokenizer that puts <s> and a space before every text."""
    config = replace(
        tiny_config, vocab_size=384, learned_positions=False, rotary=Rotary(), norm="rms", gated=True,
        kv_heads=2, attention_bias=False, attention_out_bias=False, mlp_bias=False, eos_token=2, bos_token=1,
        activation="silu",
    )  # fmt: skip
    return Model(config, init_params(config, 0), sentencepiece_tokenizer)


def test_prompts_begin_with_what_the_tokenizer_puts_before_every_text(sentencepiece_tokenizer):
    texts = ["the fox", "", "日本"]
    assert encode_prompts(sentencepiece_tokenizer, texts) == [
        sentencepiece_tokenizer.encode(text) for text in texts
    ]
    assert encode_prompts(sentencepiece_tokenizer, [""]) == [[1]]


def test_a_prompt_that_spells_its_beginning_gets_no_second_one(sentencepiece_tokenizer):
    (ids,) = encode_prompts(sentencepiece_tokenizer, ["<s>the fox"])
    assert ids.count(1) == 1
    assert ids[0] == 1


def test_tokenizers_that_put_nothing_first_add_nothing(byte_tokenizer):
    assert encode_prompts(byte_tokenizer, ["ab", ""]) == [byte_tokenizer.encode("ab"), []]


@pytest.mark.parametrize("prompt", ["the quick", "日本語 👩", ""])
def test_what_is_generated_is_what_the_tokenizer_decodes_after_the_prompt(spaced_model, prompt):
    tokenizer = spaced_model.tokenizer
    ids = tokenizer.encode(prompt)
    (new,) = generate_tokens(spaced_model, [ids], max_new_tokens=16)
    whole, before = (tokenizer.decode(each, skip_special_tokens=True) for each in ([*ids, *new], ids))
    (text,) = generate(spaced_model, [prompt], max_new_tokens=16)
    assert text == whole[len(before) :].rstrip("\N{REPLACEMENT CHARACTER}")
    assert "".join(stream(spaced_model, prompt, max_new_tokens=16)) == text
