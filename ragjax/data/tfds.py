"""Text of TensorFlow Datasets that are stored as array_record, read without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ragjax.data.files import hash_files
from ragjax.data.records import Record, record, record_problems
from ragjax.data.uri import Source
from ragjax.errors import InputError, listing

_CHUNK = 256
_MEND = "Delete the folder of this data set and prepare it again."


def tfds_records(source: Source) -> Iterator[Record]:
    """The named fields of every record, in the order of the split.

    The data are looked for in TFDS_DATA_DIR, or ~/tensorflow_datasets, and prepared there if need be.

    Raises:
      InputError: the data set, split or a field does not exist; the data are not stored as
        array_record; files are damaged (all are listed); the fields of a record make no text or pair.
    """
    builder, split = _prepared(source)
    _check_fields(source, builder.info.features)
    _check_files(source, builder.info.splits[split].file_instructions)
    records = builder.as_data_source(split)
    for start in range(0, len(records), _CHUNK):
        numbers = range(start, min(start + _CHUNK, len(records)))
        for number, found in zip(numbers, records.__getitems__(list(numbers)), strict=True):
            values = {name: _value(source, number, name, found[name]) for name in source.fields}
            if wrong := record_problems(source, values):
                raise InputError(f"{source.uri}: {'; '.join(wrong)} in record {number}")
            yield record(source, values)


def tfds_digest(source: Source) -> str:
    """The sha256 over the files of the split, and which of their records it takes."""
    builder, split = _prepared(source)
    parts = builder.info.splits[split].file_instructions
    taken = [(part.skip, part.take) for part in parts]
    return f"{hash_files([part.filename for part in parts])} {taken}"


def _prepared(source: Source) -> tuple[Any, str]:
    """The builder of a prepared data set, and the name of a split it has."""
    import tensorflow_datasets as tfds

    split, folder = source.split or "train", os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(source.location, data_dir=folder, file_format="array_record")
        if not builder.is_prepared():
            builder.download_and_prepare()
        builder.info.splits[split]
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{source.uri}: expected NAME/split of a data set that is in {folder or '~/tensorflow_datasets'} "
            f"(set by TFDS_DATA_DIR), stored as array_record, or can be fetched; found: {reason}. "
            f"To prepare it: tfds build {source.location} --file_format=array_record"
        ) from error
    return builder, split


def _check_fields(source: Source, features: Any) -> None:
    fields = list(features) if hasattr(features, "keys") else []
    if lacking := [name for name in source.fields if name not in fields]:
        raise InputError(
            f"{source.uri}: no field {', '.join(map(repr, lacking))}, "
            f"found {', '.join(map(repr, fields)) or 'none'}; name one after '#'"
        )


def _check_files(source: Source, parts: list[Any]) -> None:
    """Counts the records of each file: the reader takes a file cut short for one of empty records."""
    from array_record.python.array_record_module import ArrayRecordReader

    problems = []
    for part in parts:
        try:
            reader = ArrayRecordReader(str(part.filename))
            found = reader.num_records()
            reader.close()
        except (OSError, RuntimeError) as error:
            problems.append(f"{part.filename}: {str(error) or 'cut short'}")
        else:
            if found != part.examples_in_shard:
                problems.append(f"{part.filename}: expected {part.examples_in_shard} records, found {found}")
    if problems:
        raise InputError(f"{source.uri}: damaged or truncated files:\n{listing(problems)}\n{_MEND}")


def _value(source: Source, number: int, name: str, value: Any) -> Any:
    """A value as JSON would have it."""
    if value is None:
        raise InputError(f"{source.uri}: record {number} cannot be read. {_MEND}")
    if not isinstance(value, bytes):
        return value.item() if isinstance(value, np.generic) else value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source.uri}: field {name!r} of record {number} is not UTF-8 at byte {error.start}"
        ) from error
