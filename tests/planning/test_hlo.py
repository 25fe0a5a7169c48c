# ruff: noqa: E501
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ragjax.config import Mesh
from ragjax.parallel.mesh import make_mesh
from ragjax.planning.hlo import Collective, read_traffic

TPU = """\
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%begins (p: bf16[1,128,2048]) -> (bf16[1,128,2048], bf16[1,2048,2048]) {
  %p = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={1}
  ROOT %c = (bf16[1,128,2048]{2,1,0}, bf16[1,2048,2048]{2,1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%ends (p.1: bf16[1,128,2048]) -> bf16[1,2048,2048] {
  %p.1 = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=7, dimensions={1}
}

%body (s: (s32[], bf16[1,128,2048], f32[256])) -> (s32[], bf16[1,128,2048], f32[256]) {
  %s = (s32[]{:T(128)}, bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)}, f32[256]{0}) parameter(0)
  %x = bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%s), index=1
  %g = f32[256]{0} get-tuple-element(%s), index=2
  %fusion.1 = (bf16[1,128,2048]{2,1,0}, bf16[1,2048,2048]{2,1,0}) fusion(%x), kind=kCustom, calls=%begins, backend_config={"estimated_cycles":"100"}
  %fusion.2 = bf16[1,2048,2048]{2,1,0} fusion(%x), kind=kCustom, calls=%ends, backend_config={"estimated_cycles":"20"}
  %reduce-scatter.1 = f32[16]{0} reduce-scatter(%g), channel_id=3, dimensions={0}, to_apply=%add
  ROOT %out = (s32[]{:T(128)}, bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)}, f32[256]{0}) tuple(%s, %x, %g)
}

%condition (s.1: (s32[], bf16[1,128,2048], f32[256])) -> pred[] {
  %twelve = s32[]{:T(128)} constant(12)
  %s.1 = (s32[]{:T(128)}, bf16[1,128,2048]{2,1,0:T(8,128)(2,1)S(1)}, f32[256]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %twelve), direction=LT
}

ENTRY %main (q: f32[8,4], t: (s32[], bf16[1,128,2048], f32[256])) -> f32[8,4] {
  %q = f32[8,4]{1,0:T(8,128)} parameter(0)
  %t = (s32[]{:T(128)}, bf16[1,128,2048]{2,1,0}, f32[256]{0}) parameter(1)
  %while.1 = (s32[]{:T(128)}, bf16[1,128,2048]{2,1,0}, f32[256]{0}) while(%t), condition=%condition, body=%body
  %all-reduce-start.1 = f32[8,4]{1,0:T(8,128)} all-reduce-start(%q), channel_id=9, to_apply=%add
  %all-reduce-done.1 = f32[8,4]{1,0:T(8,128)} all-reduce-done(%all-reduce-start.1)
  ROOT %copy.1 = f32[8,4]{1,0:T(8,128)} copy(%all-reduce-done.1), backend_config={"estimated_cycles":"5"}
}
"""


def test_a_loop_counts_as_often_as_it_turns_and_a_split_collective_once():
    found = read_traffic(TPU)
    assert found.collectives == {
        "all-gather": Collective(12, 12 * 2 * 2048 * 2048),
        "reduce-scatter": Collective(12, 12 * 4 * 256),
        "all-reduce": Collective(1, 4 * 8 * 4),
    }
    assert found.cycles == 12 * (100 + 20) + 5


RING = """\
HloModule jit_step

%body (s: (f32[100], u32[])) -> (f32[100], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %s = (f32[100]{0:T(128)}, u32[]{:T(128)}) parameter(0)
  %x = f32[100]{0:T(128)} get-tuple-element(%s), index=0
  %i = u32[]{:T(128)} get-tuple-element(%s), index=1
  %next = u32[]{:T(128)} add(%i, %two)
  %collective-permute-start.1 = (f32[100]{0}, f32[100]{0}) collective-permute-start(%x), channel_id=1
  %collective-permute-done.1 = f32[100]{0} collective-permute-done(%collective-permute-start.1)
  %collective-permute-start.2 = (f32[100]{0}, f32[100]{0}) collective-permute-start(%x), channel_id=2
  %collective-permute-done.2 = f32[100]{0} collective-permute-done(%collective-permute-start.2)
  ROOT %out = (f32[100]{0:T(128)}, u32[]{:T(128)}) tuple(%collective-permute-done.2, %next)
}

%condition (s.1: (f32[100], u32[])) -> pred[] {
  %bound = u32[]{:T(128)} constant(8)
  %s.1 = (f32[100]{0:T(128)}, u32[]{:T(128)}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%s.1), index=1
  ROOT %lt = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (q: f32[100]) -> f32[100] {
  %q = f32[100]{0} parameter(0)
  %first = u32[]{:T(128)} constant(0)
  %t = (f32[100]{0:T(128)}, u32[]{:T(128)}) tuple(%q, %first)
  %while.1 = (f32[100]{0}, u32[]{:T(128)}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[100]{0} get-tuple-element(%while.1), index=0
}
"""


@pytest.mark.parametrize(("first", "step", "turns"), [(0, 2, 4), (0, 1, 8), (1, 1, 7), (1, 2, 4), (9, 1, 0)])
def test_a_loop_that_counts_by_more_than_one_turns_less_often(first, step, turns):
    text = RING.replace("constant(0)", f"constant({first})").replace("constant(2)", f"constant({step})")
    times = 2 * turns
    assert read_traffic(text).collectives["collective-permute"] == Collective(times, times * 400)


def test_what_xla_compiles_for_the_cpu_is_read_too():
    """Megatron's layer: outputs split, then inputs, and one reduction of the activations."""
    layers, width = 5, 16
    mesh = make_mesh(Mesh(data=1, tensor=-1))

    def split(*axes, shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def run(x, up, down):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w[0]) @ w[1], None), x, (up, down))[0]

    with jax.set_mesh(mesh):
        compiled = jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(
            split(shape=(4, width)),
            split(None, None, "tensor", shape=(layers, width, 32)),
            split(None, "tensor", None, shape=(layers, 32, width)),
        ).compile()  # fmt: skip
    assert read_traffic(compiled.as_text()).collectives == {
        "all-reduce": Collective(layers, layers * 4 * 4 * width)
    }
