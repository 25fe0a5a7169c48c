"""Pictures of masks."""

import numpy as np

from ragjax.sparsity.mask_pictures import mask_picture


def test_a_small_mask_is_shown_as_it_is():
    kept = np.random.default_rng(0).random((40, 96)) < 0.5
    seen = mask_picture(kept)
    np.testing.assert_array_equal(seen.overview, kept)
    np.testing.assert_array_equal(seen.corner, kept[:, :48])


def test_cells_hold_the_share_of_what_they_span():
    kept = np.random.default_rng(0).random((200, 331)) < 0.3
    seen = mask_picture(kept)
    assert seen.overview.shape == (96, 96)
    rows, columns = (np.arange(97) * size // 96 for size in kept.shape)
    for i, j in ((0, 0), (17, 95), (95, 40)):
        cell = kept[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        assert abs(seen.overview[i, j] - cell.mean()) < 1e-12
