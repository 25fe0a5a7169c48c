"""The page about a pruning: what is shown follows from what the files say."""

import json
import re
import struct
import zlib

import numpy as np
import pytest

from ragjax.errors import InputError
from ragjax.report import write_report
from ragjax.report.picture import png
from ragjax.report.pruning import packed_picture

PRUNING = {
    "method": "sparsegpt",
    "calibration": "builtin:python",
    "tokens": 131072,
    "seconds": 200.0,
    "before": {"tokens_per_second": 1000.0, "perplexity": 20.0},
    "after": {
        "sparsity_prunable": 0.5, "sparsity_total": 0.34, "stored_bytes": 498_000_000,
        "bitmask_bytes": 320_000_000, "tokens_per_second": 990.0, "perplexity": 24.5,
    },
    "matrices": {
        "layers/mlp/up/kernel": {"sparsity": [0.25, 0.75], "error": [0.1, 0.2]},
        "layers/mlp/down/kernel": {"sparsity": [0.5, 0.5], "error": [None, None]},
    },
    "blocks": [0.11, 0.22],
    "pictures": [
        {
            "name": "layers/mlp/up/kernel", "layer": 1, "inputs": 2, "outputs": 3,
            "overview": packed_picture(np.array([[0, 255, 7], [9, 8, 6]])),
            "corner": packed_picture(np.array([[0, 255]])),
        }
    ],
}  # fmt: skip
COMPARISON = {
    "data": "builtin:python",
    "dense": {"perplexity": 20.0},
    "rows": [
        {"way": "wanda", "sparsity": 0.5, "perplexity": 25.0, "seconds": 61.0},
        {"way": "magnitude", "sparsity": 0.5, "perplexity": 400.0, "seconds": 12.0},
        {"way": "wanda", "sparsity": 0.7, "perplexity": 90.0, "seconds": 60.0},
    ],
}
SENSITIVITY = {
    "method": "wanda",
    "dense": 3.0,
    "sparsities": [0.5, 0.9],
    "loss": {"layers/mlp/up/kernel": [[3.1, 3.5], [3.3, 4.5]]},
    "budget": {"sparsity": 0.5, "table": {"layers/mlp/up/kernel": [0.6, 0.4]}},
}


def page_of(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return write_report(folder).read_text()


def text(markup):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup.split("<body>")[1].split("<script>")[0]))


def test_a_pruning_shows_the_three_figures_and_where_zeros_are(tmp_path):
    said = text(page_of(tmp_path / "out", pruning=PRUNING)).replace("\u00a0", " ")
    assert "50 % of the prunable weights are gone, by sparsegpt" in said
    assert "Perplexity went from 20.00 to 24.50." in said
    assert "131 k tokens of builtin:python" in said
    assert "of all weights 34 %" in said
    assert "498 MB" in said
    assert "320 MB" in said
    assert "0.99×" in said
    assert re.search(r"mlp up\s+25\s+75\s", said)
    assert re.search(r"mlp up\s+0\.100\s+0\.200\s", said)
    assert "mlp down" not in said.split("What each layer lost")[1]
    for missing in ("What each method costs", "What each matrix bears"):
        assert missing not in said


def test_a_comparison_draws_one_line_for_each_way(tmp_path):
    page = page_of(tmp_path / "out", comparison=COMPARISON)
    assert 'data-values="0:20.00 0.5:25.00 0.7:90.00"' in page
    assert 'data-values="0:20.00 0.5:400.0"' in page
    assert "(logarithmic)" in page
    said = text(page).replace("\u00a0", " ")
    assert re.search(r"magnitude\s+50 %\s+400\.0\s+20\.00×\s+12 s", said)
    assert "Where the zeros are" not in said


def test_sensitivity_is_shown_above_the_dense_loss(tmp_path):
    page = page_of(tmp_path / "out", sensitivity=SENSITIVITY)
    assert 'data-values="0:0.000 0.5:0.200 0.9:1.000"' in page
    said = text(page)
    assert re.search(r"mlp up\s+0\.500\s+1\.500\s", said)
    assert re.search(r"mlp up\s+60\s+40\s", said)


def test_pictures_are_png_files_of_those_bytes(tmp_path):
    page = page_of(tmp_path / "out", pruning=PRUNING)
    assert page.count("data:image/png;base64,") == 2
    made = png([[0, 255, 7], [9, 8, 6]])
    assert made[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", made[16:24]) == (3, 2)
    start = made.index(b"IDAT") + 4
    length = struct.unpack(">I", made[start - 8 : start - 4])[0]
    assert zlib.decompress(made[start : start + length]) == b"\0\0\xff\x07\0\x09\x08\x06"
    at = 8
    while at < len(made):
        # Each part: its length, its kind, its bytes, and their checksum.
        size = struct.unpack(">I", made[at : at + 4])[0]
        checksum = struct.unpack(">I", made[at + 8 + size : at + 12 + size])[0]
        assert checksum == zlib.crc32(made[at + 4 : at + 8 + size])
        at += 12 + size


def test_names_are_escaped_and_damage_is_told(tmp_path):
    evil = COMPARISON | {"data": "<script>alert(1)</script>"}
    assert "<script>alert" not in page_of(tmp_path / "out", comparison=evil)
    (tmp_path / "out" / "comparison.json").write_text("[")
    with pytest.raises(InputError, match=r"comparison\.json must hold JSON"):
        write_report(tmp_path / "out")
