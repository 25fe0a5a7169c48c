import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ragjax.data.sources import documents, pairs
from ragjax.data.tfds import tfds_digest
from ragjax.data.uri import parse_uri
from ragjax.errors import InputError

TEXTS = [f"text number {i} é" for i in range(40)]
SHARD = "ragjax_tiny-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set as TensorFlow Datasets stores it: its folder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")

    class RagjaxTiny(tfds.core.GeneratorBasedBuilder):
        # Of a class in a package, its files are looked for with importlib_resources, which may be missing.
        __module__ = "__main__"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"body": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
            features |= {"more": tfds.features.Text(), "whole": tfds.features.Scalar(np.bool_)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download):
            return {"train": self._generate_examples(TEXTS), "test": self._generate_examples([" ", "last"])}

        def _generate_examples(self, texts):
            yield from (
                (i, {"body": text, "label": i, "more": f" and {i}", "whole": i > 5})
                for i, text in enumerate(texts)
            )

    RagjaxTiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """A copy that a test may damage."""
    for file in (prepared / "ragjax_tiny/1.0.0").iterdir():
        copy = tmp_path / "ragjax_tiny/1.0.0" / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path / "ragjax_tiny/1.0.0"


def test_every_record_is_a_document_and_blank_ones_are_left_out(folder):
    assert sorted(documents("tfds:ragjax_tiny/train#body")) == sorted(TEXTS)
    assert list(documents("tfds:ragjax_tiny/test#body")) == ["last"]


def test_records_are_pairs_where_several_fields_are_named(folder):
    expected = [(text, f" and {i}", i > 5) for i, text in enumerate(TEXTS)]
    assert sorted(pairs("tfds:ragjax_tiny/train#body,more,whole")) == sorted(expected)
    with pytest.raises(InputError, match=r"no field 'most', found .*'more'"):
        list(pairs("tfds:ragjax_tiny/train#body,most"))
    with pytest.raises(InputError, match=r"field 'body' is blank.* in record \d"):
        list(pairs("tfds:ragjax_tiny/test#more,body"))


def test_slices_and_sums_of_splits_are_read(folder):
    whole = list(documents("tfds:ragjax_tiny#body"))
    assert list(documents("tfds:ragjax_tiny/train[5:8]#body")) == whole[5:8]
    assert list(documents("tfds:ragjax_tiny/train+test#body")) == [*whole, "last"]


def test_the_digest_follows_records_and_slices(folder):
    uris = ["train", "train[:8]", "train[8:16]", "test"]
    digests = [tfds_digest(parse_uri(f"tfds:ragjax_tiny/{split}#body")) for split in uris]
    assert len(set(digests)) == len(uris)
    (folder / SHARD).write_bytes(bytes(65536))
    assert tfds_digest(parse_uri("tfds:ragjax_tiny/train#body")) != digests[0]


@pytest.mark.parametrize("size", [0, 3000, 65536, 131071])
def test_a_truncated_file_is_named(folder, size):
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:size])
    with pytest.raises(InputError, match=f"truncated files:\n.*{SHARD}: .+\nDelete"):
        list(documents("tfds:ragjax_tiny/train#body"))


def test_a_file_with_records_missing_is_named(folder):
    about = json.loads((folder / "dataset_info.json").read_text())
    about["splits"][0]["shardLengths"] = ["41"]
    (folder / "dataset_info.json").write_text(json.dumps(about))
    split = about["splits"][0]["name"]
    with pytest.raises(InputError, match=r"expected 41 records, found \d+"):
        list(documents(f"tfds:ragjax_tiny/{split}#body"))


def test_a_missing_file_is_named(folder):
    (folder / SHARD).unlink()
    with pytest.raises(InputError, match=SHARD):
        list(documents("tfds:ragjax_tiny/train#body"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tfds:ragjax_tiny/train", "no field 'text', found 'body', 'label', 'more', 'whole'"),
        ("tfds:ragjax_tiny/train#label", "must be a string, found int"),
        ("tfds:ragjax_tiny/dev#body", r"Unknown split 'dev'. Should be one of \['train', 'test'\]"),
        ("tfds:ragjax_none/train#body", "ragjax_none not found"),
        ("tfds:not a name/train#body", "set by TFDS_DATA_DIR"),
    ],
)
def test_what_is_not_there_is_named(folder, uri, message):
    with pytest.raises(InputError, match=message):
        list(documents(uri))


def test_another_file_format_is_told_how_to_prepare(folder):
    about = folder / "dataset_info.json"
    about.write_text(about.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match="tfds build ragjax_tiny --file_format=array_record"):
        list(documents("tfds:ragjax_tiny/train#body"))


def test_tensorflow_is_never_imported(folder):
    script = (
        "import sys\n"
        "from ragjax.data.sources import documents\n"
        "print(len(list(documents('tfds:ragjax_tiny/train#body'))))\n"
        "print('tensorflow' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [str(len(TEXTS)), "False"], run.stderr
