import numpy as np
import pytest

from ragjax.data.array_file import ArrayFile


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_numpy_reads_what_was_appended(tmp_path, dtype):
    parts = [np.arange(n) for n in (0, 3, 70_000 if dtype == np.uint32 else 7)]
    with ArrayFile(tmp_path / "a.npy", dtype) as file:
        for part in parts:
            file.append(part)
    read = np.load(tmp_path / "a.npy", mmap_mode="r", allow_pickle=False)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, np.concatenate(parts))


def test_a_file_that_was_not_finished_reads_as_empty(tmp_path):
    file = ArrayFile(tmp_path / "a.npy", np.int64)
    file.append(np.arange(3))
    file.__exit__(RuntimeError, RuntimeError("stop"), None)
    assert len(np.load(tmp_path / "a.npy")) == 0
