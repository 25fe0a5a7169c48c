import pytest

from ragjax.errors import InputError
from ragjax.interchange.families import FAMILIES
from ragjax.interchange.fields import REFUSED

OWN = {"gpt3": {"attention_windows": [0, 5]}}
FULL_DUMP = {
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "torch_dtype": "float32", "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "chunk_size_feed_forward": 0, "is_encoder_decoder": False, "is_decoder": False,
    "cross_attention_hidden_size": None, "add_cross_attention": False, "tie_encoder_decoder": False,
    "max_length": 20, "min_length": 0, "do_sample": False, "early_stopping": False, "num_beams": 1,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "num_return_sequences": 1,
    "output_scores": False, "return_dict_in_generate": False, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False, "exponential_decay_length_penalty": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "architectures": None, "finetuning_task": None,
    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "tokenizer_class": None, "prefix": None,
    "pad_token_id": None, "sep_token_id": None, "decoder_start_token_id": None,
    "task_specific_params": None, "problem_type": None, "_name_or_path": "", "transformers_version": "4.40.0",
    "quantization_config": None,
}  # fmt: skip
"""What `to_dict` of transformers 4 has of every config."""


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_full_dump_says_of_every_model_changes_nothing(family):
    values = {"model_type": family, **OWN.get(family, {})}
    config_from = FAMILIES[family].config_from
    assert config_from({**values, **FULL_DUMP}) == config_from(values)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_family_supports_is_refused_with_its_reason(family, name):
    values = {"model_type": family, **OWN.get(family, {}), name: {"0": [1]}}
    with pytest.raises(InputError) as caught:
        FAMILIES[family].config_from(values)
    assert f"{name} {values[name]!r}: {REFUSED[name]}" in str(caught.value)
