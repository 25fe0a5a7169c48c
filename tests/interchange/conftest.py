"""What holds a family of models against transformers."""

import copy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ragjax.generation.continuation import generate_tokens
from ragjax.interchange import load, save
from ragjax.interchange.families import family_for
from ragjax.interchange.layout import tensor_reader
from ragjax.model import Model
from ragjax.models.decoder import logits
from ragjax.models.run import run_decoder


@pytest.fixture(scope="session")
def check_family(randomize):
    """Holds a causal model of transformers against the same model in ragjax, which it returns.

    Logits are compared, and what is left of the model after it was saved here and opened there again.
    The model given is randomized first.
    """

    def check(theirs, folder: Path) -> Model:
        randomize(theirs).save_pretrained(folder / "theirs")
        ours = load(folder / "theirs")
        tokens = some_tokens(ours)
        told = theirs(torch.tensor(tokens)).logits.detach().numpy()
        assert np.abs(np.asarray(ours(tokens)) - told).max() < 1e-4
        check_round_trip(ours, theirs, folder / "ours")
        return ours

    def check_round_trip(ours, theirs, folder):
        back = open_in_torch(save(ours, folder), type(theirs))
        state, expected = back.state_dict(), theirs.state_dict()
        assert state.keys() == expected.keys()
        assert [name for name in state if not torch.equal(state[name], expected[name])] == []
        again = load(folder)
        assert again.config == ours.config
        jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)

    return check


@pytest.fixture(scope="session")
def check_use(randomize):
    """Holds what is done with a causal model of transformers against the same in ragjax.

    The loss, the gradient of every tensor and greedy continuations are compared. Names in the file that
    differ from those in torch are given as `renamed`. The model given is randomized first.
    """

    def check(theirs, folder: Path, renamed: dict[str, str] | None = None) -> None:
        randomize(theirs).save_pretrained(folder)
        ours = load(folder)
        tokens = some_tokens(ours)
        check_gradients(ours, theirs, tokens, renamed or {})
        check_continuations(ours, copy.deepcopy(theirs), tokens[0])

    def check_gradients(ours, theirs, tokens, renamed):
        def loss(params):
            scores = logits(params, run_decoder(ours.config, params, tokens).hidden, ours.config)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(scores[:, :-1]), tokens[:, 1:, None], -1)
            return -chosen.mean()

        theirs.zero_grad()
        told = theirs(torch.tensor(tokens), labels=torch.tensor(tokens))
        told.loss.backward()
        value, gradients = jax.jit(jax.value_and_grad(loss))(ours.params)
        assert abs(float(value) - told.loss.item()) < 1e-4 * told.loss.item()
        read = tensor_reader(gradients, family_for(ours.config).layout(ours.config))
        expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
        overall = max(np.abs(gradient).max() for gradient in expected.values())
        for name, gradient in expected.items():
            largest = np.abs(gradient).max()
            # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
            bound = 1e-4 * largest if largest > 1e-6 * overall else 1e-6 * overall
            assert np.abs(read(renamed.get(name, name)) - gradient).max() < bound, name

    def check_continuations(ours, theirs, tokens):
        theirs.generation_config.eos_token_id = None
        new = 14
        prompts = [tokens[:size].tolist() for size in (1, 4, min(20, ours.config.positions - new))]
        answers = generate_tokens(ours, prompts, max_new_tokens=new, stop_at_eos=False)
        for prompt, answer in zip(prompts, answers, strict=True):
            told = theirs.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False, max_new_tokens=new, pad_token_id=0,
            )  # fmt: skip
            assert answer.tolist() == told[0, len(prompt) :].tolist()

    return check


def some_tokens(model: Model) -> np.ndarray:
    """Two sequences, of 40 tokens at most."""
    shape = (2, min(40, model.config.positions))
    return np.random.default_rng(0).integers(0, model.config.vocab_size, shape)


@pytest.fixture(scope="session")
def check_storage(randomize):
    """Saves a causal model of transformers in a type and in shards, and holds every bit after both ways."""

    def check(theirs, folder: Path, dtype: str, shard_bytes: int = 10_000) -> None:
        theirs = randomize(theirs).to(getattr(torch, dtype))
        theirs.save_pretrained(folder / "theirs", max_shard_size=shard_bytes)
        assert (folder / "theirs" / "model.safetensors.index.json").exists()
        save(load(folder / "theirs"), folder / "ours", dtype=dtype, shard_bytes=shard_bytes)
        assert (folder / "ours" / "model.safetensors.index.json").exists()
        back = open_in_torch(folder / "ours", type(theirs))
        state, expected = back.state_dict(), theirs.state_dict()
        assert back.config.dtype == theirs.dtype
        assert state.keys() == expected.keys()
        assert [name for name in state if not torch.equal(state[name], expected[name])] == []

    return check


def open_in_torch(folder: Path, kind):
    """A saved model as transformers opens it, without a tensor missing, left over or misshapen."""
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()
