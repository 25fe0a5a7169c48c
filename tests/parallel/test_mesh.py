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
    assert make_mesh(Mesh(fsdp=2), jax.devices()[:2]).size == 2


def test_a_mesh_that_leaves_devices_out_is_refused():
    with pytest.raises(InputError, match="all 8 devices, found data 3"):
        make_mesh(Mesh(data=3))
