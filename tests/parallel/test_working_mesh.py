"""As many devices work as were asked for."""

import jax
import pytest

from ragjax.config import Mesh
from ragjax.errors import InputError
from ragjax.parallel.working_mesh import working_mesh


def test_one_device_needs_no_mesh():
    assert working_mesh(Mesh(data=1)) is None


@pytest.mark.parametrize(
    ("asked", "shape"),
    [(Mesh(data=2, tensor=2), (2, 1, 2)), (Mesh(data=1, fsdp=3), (1, 3, 1)), (Mesh(tensor=2), (4, 1, 2))],
)
def test_the_first_devices_work_and_the_rest_stand_by(asked, shape):
    mesh = working_mesh(asked)
    assert tuple(mesh.shape.values()) == shape
    assert list(mesh.devices.flat) == jax.devices()[: mesh.size]


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(InputError, match="must use all 8 devices, found data 64"):
        working_mesh(Mesh(data=64))
