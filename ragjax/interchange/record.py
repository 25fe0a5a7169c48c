"""ragjax.json: where a model came from, what was done to it, and how sparse it is."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from ragjax.errors import InputError
from ragjax.interchange.json_file import read_object, write_object
from ragjax.models.decoder import Params
from ragjax.models.stand_ins import named_leaves
from ragjax.sparsity.figures import count_nonzeros
from ragjax.sparsity.masks import prunable

RECORD = "ragjax.json"
FORMAT = 1


def write_record(folder: Path, params: Params, history: tuple[dict[str, Any], ...]) -> None:
    """Writes ragjax.json beside a model.

    Args:
      folder: the model's folder.
      params: the parameters, whose zeros are counted.
      history: what was done to the model, oldest first.
    """
    try:
        version = metadata.version("ragjax")
    except metadata.PackageNotFoundError:
        version = None
    record = {
        "format": FORMAT,
        "ragjax": version,
        "source": next((entry["source"] for entry in history if "source" in entry), None),
        "history": list(history),
        "masks": zeros(params),
    }
    try:
        write_object(folder / RECORD, record)
    except TypeError as error:
        raise InputError(f"The model's history must hold JSON values: {error}.") from None


def read_history(folder: Path) -> tuple[dict[str, Any], ...] | None:
    """What was done to the model in a folder; none where ragjax did not write it.

    Raises:
      InputError: ragjax.json is damaged, or of a later version.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    record = read_object(file)
    if record.get("format") != FORMAT:
        raise InputError(
            f"{file}: format {FORMAT} was expected, found {record.get('format')!r}: use the ragjax "
            f"that wrote it ({record.get('ragjax')}), or remove the file, which forgets the model's history."
        )
    history = record.get("history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise InputError(f"{file}: history must be a list of JSON objects, found {history!r:.80}.")
    return tuple(history)


def zeros(params: Params) -> dict[str, Any]:
    """Exact zeros among the prunable weights: in all, and of each matrix in each layer."""
    matrices = {}
    removed = size = 0
    chosen = prunable(params)
    nonzeros = count_nonzeros(chosen)
    for name, leaf in named_leaves(chosen):
        matrix = leaf.size // leaf.shape[0]
        counts = [matrix - int(count) for count in nonzeros[name]]
        matrices[name] = {"size": matrix, "zeros": counts}
        removed += sum(counts)
        size += leaf.size
    return {"sparsity": removed / size, "zeros": removed, "size": size, "matrices": matrices}
