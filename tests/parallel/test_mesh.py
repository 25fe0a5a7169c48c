import jax
import pytest

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.parallel.mesh import AXES, batch_shards, make_mesh


def test_the_free_axis_takes_what_is_left():
    mesh = make_mesh(Mesh(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh.axis_names == AXES
    assert batch_shards(mesh) == 4


def test_some_of_the_devices_can_be_used():
    some = jax.devices()[2:4]
    assert list(make_mesh(Mesh(fsdp=2), some).devices.flat) == some


@pytest.mark.parametrize("sizes", [{"data": 3}, {"data": 16}, {"data": -1, "fsdp": 3}], ids=str)
def test_a_mesh_of_other_than_all_devices_is_refused(sizes):
    with pytest.raises(InputError, match=f"all 8 devices, found data {sizes['data']}"):
        make_mesh(Mesh(**sizes))
