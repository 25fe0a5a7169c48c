import pytest

from ragjax.distillation.layer_map import layer_pairs


@pytest.mark.parametrize(
    ("depths", "answered"),
    [((6, 12), (1, 3, 5, 7, 9, 11)), ((4, 4), (0, 1, 2, 3)), ((1, 5), (4,)), ((4, 6), (1, 2, 4, 5))],
)
def test_uniform_ends_with_the_last_layer_and_splits_the_teacher_evenly(depths, answered):
    assert layer_pairs("uniform", *depths) == tuple(enumerate(answered))


def test_uniform_lets_a_deeper_student_answer_to_a_layer_several_times():
    assert layer_pairs("uniform", 4, 2) == ((0, 0), (1, 0), (2, 1), (3, 1))


def test_last_pairs_the_ends_of_both():
    assert layer_pairs("last", 2, 5) == ((0, 3), (1, 4))
    assert layer_pairs("last", 5, 2) == ((3, 0), (4, 1))


def test_a_table_pairs_what_it_names():
    assert layer_pairs((3, -1, 0), 3, 4) == ((0, 3), (2, 0))
