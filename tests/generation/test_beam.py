import pytest

from ragjax.errors import InputError
from ragjax.generation import continuations, generate, stream
from ragjax.interchange import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, torch_gpt2, randomize, tmp_path_factory):
    """A random model of transformers, and the same here."""
    if request.param == "gpt2":
        theirs = torch_gpt2(n_positions=48)
    else:
        torch.manual_seed(0)
        theirs = randomize(
            transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    vocab_size=101, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=48,
                )
            )
        )  # fmt: skip
    theirs.generation_config.eos_token_id = None
    folder = tmp_path_factory.mktemp("beam")
    theirs.save_pretrained(folder)
    return theirs, load(folder)


def searched(theirs, prompt, ends, **options):
    """New tokens up to the one that ends, and the score, by transformers."""
    found = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
        eos_token_id=list(ends) or None, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
        **options,
    )  # fmt: skip
    new = found.sequences[0, len(prompt) :].tolist()
    cut = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
    return new[:cut], float(found.sequences_scores[0])


PROMPTS = [[5, 6, 7], [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60], [99]]
CASES = [
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 0.0},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never"},
    {"num_beams": 4, "early_stopping": True, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_beams_equal_those_of_transformers(pair, options):
    theirs, ours = pair
    # Tokens that end texts at many lengths.
    ends = tuple(range(1, 100, 7))
    here = {"beams" if name == "num_beams" else name: value for name, value in options.items()}
    for stop in ((), ends[:1], ends):
        found = continuations(
            ours, PROMPTS, max_new_tokens=12, stop_at_eos=False, stop_tokens=stop, log_probs=0, **here
        )
        for prompt, one in zip(PROMPTS, found, strict=True):
            tokens, score = searched(theirs, prompt, stop, max_new_tokens=12, **options)
            assert one.tokens.tolist() == tokens
            assert one.score == pytest.approx(score, abs=1e-4)
            assert one.ended == ("end_token" if tokens[-1] in stop else "length")
            if "repetition_penalty" not in options:
                power = len(tokens) ** options.get("length_penalty", 1.0)
                assert one.log_probs.sum() / power == pytest.approx(one.score, abs=1e-4)


def test_beams_are_handed_on_whole(tiny_byte_model):
    pieces = []
    [text] = generate(
        tiny_byte_model,
        ["ab"],
        beams=2,
        max_new_tokens=8,
        on_text=lambda row, piece: pieces.append((row, piece)),
    )
    assert "".join(piece for _, piece in pieces) == text
    with pytest.raises(InputError, match="beams to 1"):
        stream(tiny_byte_model, "ab", beams=2, max_new_tokens=8)
