"""Text of data sets on the Hugging Face hub, read with `datasets` where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ragjax.data.files import hash_files
from ragjax.data.records import Record, record, record_problems
from ragjax.data.uri import Source
from ragjax.errors import InputError


def hub_records(source: Source) -> Iterator[Record]:
    """The named fields of every row, in the order of the split.

    Raises:
      InputError: `datasets` is not installed; the data set, split or a field cannot be found; the fields
        of a row make no text or pair.
    """
    rows = _load(source)
    if lacking := [name for name in source.fields if name not in rows.column_names]:
        absent, fields = (", ".join(map(repr, names)) for names in (lacking, rows.column_names))
        raise InputError(f"{source.uri}: no field {absent}, found {fields}; name one after '#'")
    for number, row in enumerate(rows.select_columns(list(source.fields))):
        if wrong := record_problems(source, row):
            raise InputError(f"{source.uri}: {'; '.join(wrong)} in row {number}")
        yield record(source, row)


def hub_digest(source: Source) -> str:
    """The sha256 over the files in which `datasets` keeps the data set, and the split taken of them."""
    rows = _load(source)
    return f"{hash_files([file['filename'] for file in rows.cache_files])} {_split(source)} {len(rows)}"


def _split(source: Source) -> str:
    return source.split or "train"


def _load(source: Source) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{source.uri}: needs the package datasets, found: {error}. Run: pip install 'ragjax[hub]'"
        ) from error
    name, _, configuration = source.location.partition(":")
    try:
        return datasets.load_dataset(name, configuration or None, split=_split(source))
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{source.uri}: expected a data set of the hub, as hf:NAME, hf:NAME:CONFIGURATION or "
            f"hf:NAME/split#field, found: {reason}"
        ) from error
