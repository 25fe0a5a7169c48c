import pytest

from ragjax.errors import InputError
from ragjax.interchange.folder import save
from ragjax.planning.published import PUBLISHED, shape_of
from ragjax.sparsity.shrink import parameter_count

PARAMETERS = {
    "distilgpt2": 81_912_576,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "opt-175b": 174_604_468_224,
}
"""As transformers counts them on its meta device."""


def test_each_has_the_parameters_of_the_published_model():
    assert {name: parameter_count(shape_of(name)) for name in PUBLISHED} == PARAMETERS


def test_the_owner_and_the_case_of_a_name_do_not_matter():
    assert shape_of("facebook/OPT-125M") == shape_of("opt-125m")


def test_a_folder_says_its_own_shape(tiny_model, tmp_path):
    folder = save(tiny_model, tmp_path / "gpt2")
    assert shape_of(str(folder)).spelled_out() == tiny_model.config.spelled_out()


def test_what_is_not_here_is_not_downloaded():
    with pytest.raises(InputError, match="folder of that name with config"):
        shape_of("EleutherAI/pythia-12b")
