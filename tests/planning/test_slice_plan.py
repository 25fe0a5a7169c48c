import importlib.util
from dataclasses import replace

import pytest
from jax.sharding import AbstractMesh

from ragjax.config import Architecture, Compress, Data, Distill, Mesh, Sparsity, Student, Teacher, Train
from ragjax.errors import InputError
from ragjax.parallel.mesh import AXES
from ragjax.planning import plan
from ragjax.planning.hlo import Collective, Traffic
from ragjax.planning.student_step import StudentStep
from ragjax.planning.table import rows
from ragjax.planning.tpu_compiler import Compiled
from ragjax.sparsity.shrink import flops_per_token

CONFIG = Compress(
    teacher=Teacher(architecture=Architecture(layers=4, width=128, heads=4, positions=128)),
    student=Student(layers=2),
    data=Data(sequence_length=128, vocab_size=1024),
    train=Train(batch_size=16, accumulate=2),
    sparsity=Sparsity(target=0.5),
    mesh=Mesh(data=1, fsdp=-1),
)
MATRICES = 2 * 12 * 128**2
"""Weights of the student's blocks."""


NO_TRAFFIC = Traffic({}, 0)


def compiled(topology="v5e:2x2", *, held=1_000_000_000, traffic=NO_TRAFFIC):
    """The plan of shapes, with what a compiler might have said."""
    return replace(plan(CONFIG, topology, compile=False), compiled=Compiled(held, traffic))


def test_without_a_slice_all_lies_on_the_chips_the_mesh_names():
    found = plan(replace(CONFIG, mesh=Mesh(data=1, fsdp=2)))
    assert found.mesh == {"data": 1, "fsdp": 2, "tensor": 1}
    assert found.chips == 2
    assert (found.memory, found.fits, found.other_bytes, found.seconds) == (None,) * 4


def test_memory_is_seventeen_bytes_a_weight_and_the_teachers_four_shared_by_all_chips():
    found = plan(CONFIG, "v5e:2x2", compile=False)
    alone, shared = plan(replace(CONFIG, mesh=Mesh())).held, found.held
    assert alone.masks == MATRICES
    assert alone.parameters == alone.gradients == 4 * found.student_parameters
    assert alone.teacher == 4 * found.teacher_parameters
    assert shared.masks == MATRICES / 4
    assert shared.parameters == pytest.approx(alone.parameters / 4, rel=0.02)
    assert found.bytes_per_chip == sum(shared)


def test_operations_are_three_passes_of_the_student_and_one_of_the_teacher():
    found = plan(CONFIG)
    assert found.tokens_per_step == 16 * 128
    from ragjax.models.decoder_config import DecoderConfig

    teacher = DecoderConfig(1024, 128, 128, 4, 4, 512)
    student = replace(teacher, layers=2)
    forward, taught = flops_per_token(student, 128), flops_per_token(teacher, 128)
    assert found.model_flops_per_token == 3 * forward + taught
    # Attention's scores are made again; the vocabulary needs no padding here.
    assert found.program_flops_per_token == 3 * forward + taught + 2 * 2 * 128 * 128


def test_projections_of_unlike_widths_learn_too():
    config = replace(CONFIG, teacher=Teacher(model="gpt2-medium"), student=Student(model="gpt2", layers=6))
    without, found = plan(config).held, plan(replace(config, distill=Distill(hidden_mse=1.0))).held
    assert found.parameters > without.parameters + 4 * 768 * 1024 - 1
    assert found.masks == without.masks


def test_a_cached_teacher_is_refused():
    config = replace(
        CONFIG, teacher=Teacher(model="gpt2", cache="there"), data=replace(CONFIG.data, fixed_cuts=True)
    )
    with pytest.raises(InputError, match=r"--teacher\.cache None"):
        plan(config)


def test_without_a_loss_that_asks_for_it_the_teacher_is_not_there():
    found = plan(replace(CONFIG, distill=Distill(forward_kl=0.0, cross_entropy=1.0)))
    assert found.teacher_parameters == found.held.teacher == 0


def test_a_student_of_its_own_shape_starts_as_that_model():
    config = replace(CONFIG, teacher=Teacher(model="gpt2-medium"), student=Student(model="gpt2", layers=6))
    assert plan(config).student_parameters == 81_912_576


def test_what_the_compiler_finds_besides_the_state_is_activations():
    found = compiled()
    assert found.other_bytes == 1_000_000_000 - sum(found.held)
    assert found.bytes_per_chip == 1_000_000_000
    assert found.fits


@pytest.mark.parametrize(
    ("held", "traffic"), [(16_100_000_000, Traffic({}, 0)), (15_900_000_000, None)], ids=["more", "refused"]
)
def test_what_is_more_than_a_chip_has_or_was_refused_does_not_fit(held, traffic):
    found = compiled(held=held, traffic=traffic)
    assert found.fits is False
    assert any("of 16 GB: does not fit" in note for _, _, note in rows(found))


def test_the_share_of_the_peak_is_that_of_the_models_operations():
    found = compiled(traffic=Traffic({}, 3_000_000))
    assert found.seconds == pytest.approx(0.002, rel=0.01)
    done = found.model_flops_per_token * 2048 / 4
    assert found.share_of_peak == pytest.approx(done / 0.002 / 197e12, rel=0.01)


def test_the_table_has_a_row_for_every_figure_and_json_the_same():
    found = compiled(traffic=Traffic({"all-gather": Collective(12, 3_000_000_000)}, 3_000_000))
    told = {name: (figure, note) for name, figure, note in rows(found)}
    assert told["chips"] == ("4", "v5e:2x2, data 1 x fsdp 4 x tensor 1")
    assert told["all-gather, a step"] == ("12", "3.00 GB a chip")
    assert told["a chip holds: all"] == ("1.00 GB", "of 16 GB: fits")
    assert told["tokens a step"][0] == "2,048"
    values = found.to_dict()
    assert values["collectives"] == {"all-gather": {"times": 12, "bytes": 3_000_000_000}}
    assert sum(values["bytes"].values()) == values["bytes_per_chip"] == 1_000_000_000


def test_a_mesh_that_cannot_split_the_batch_is_refused():
    with pytest.raises(InputError, match="8 sequences of a microbatch"):
        plan(CONFIG, "v5e:4x4", compile=False)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install 'ragjax[tpu]' for libtpu")
def test_the_tpu_compiler_finds_the_state_the_shapes_say_and_reduces_the_gradients():
    found = plan(CONFIG, "v5e:2x2")
    assert found.fits
    assert found.compiled.bytes > sum(found.held) - found.held.gradients
    assert found.seconds > 0
    assert {"all-gather", "all-reduce"} <= found.compiled.traffic.collectives.keys()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install 'ragjax[tpu]' for libtpu")
def test_a_step_the_tpu_compiler_refuses_for_its_size_does_not_fit():
    wide = Teacher(architecture=Architecture(layers=1, width=8192, heads=64, positions=128))
    config = replace(CONFIG, teacher=wide, student=Student(layers=1), mesh=Mesh())
    found = plan(config, "v5e:2x2")
    assert found.compiled.traffic is None
    assert found.fits is False


@pytest.mark.parametrize("field", ["isolate_documents", "pack_pairs"])
def test_documents_that_do_not_see_each_other_are_planned_for(field):
    apart = replace(CONFIG, data=replace(CONFIG.data, **{field: True}))
    mesh = AbstractMesh((1, 1, 1), AXES)
    whole, split = (str(StudentStep(config, mesh).traced().jaxpr) for config in (CONFIG, apart))
    assert whole.count("i32[2,8,128]") < split.count("i32[2,8,128]")
