"""From what a person writes for MODEL to a folder, or a GGUF file, on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from ragjax.errors import InputError
from ragjax.interchange.json_file import read_object

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "vocab.txt", "*.model", "*.jinja"]
_RUN_MODELS = ("student", "model")


def resolve(model: str | Path) -> Path:
    """The Hugging Face folder, or the GGUF file, that MODEL names.

    Args:
      model: a Hugging Face folder; a GGUF file; a ragjax run folder, which stands for its student (or,
        where it trained only one model, for that); or a hub id, `name` or `owner/name`, whose
        safetensors, JSON and tokenizer files are downloaded, or taken from the hub's cache.

    Raises:
      InputError: nothing of the kind is there; says what was looked for and what to do.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.exists():
        if _is_gguf(path):
            return path
        raise InputError(
            f"MODEL {str(model)!r} is a file, and no GGUF: give the folder that holds config.json beside it."
        )
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return _download(model)
    raise InputError(
        f"MODEL {str(model)!r} was not found. Looked for a folder of that name ({path.absolute()}); as a hub "
        "id it would have to be name or owner/name. Give a Hugging Face folder, a GGUF file, a run "
        "folder or a hub id."
    )


def _is_gguf(path: Path) -> bool:
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _folder(path: Path) -> Path:
    for name in _RUN_MODELS:
        if (path / name / "config.json").is_file():
            return path / name
    config = path / "config.json"
    if not config.is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        hint = " Of a GGUF file give the path of the file itself." if any(path.glob("*.gguf")) else ""
        raise InputError(
            f"MODEL {str(path)!r} holds no model: looked for config.json, "
            f"{' and '.join(f'{name}/config.json' for name in _RUN_MODELS)}, found {found}.{hint}"
        )
    values = read_object(config)
    if "kind" in values and "model_type" not in values:
        raise InputError(
            f"MODEL {str(path)!r} is a run folder whose model is not finished yet: looked for "
            f"{' and '.join(f'{name}/config.json' for name in _RUN_MODELS)}. Start the same command again, "
            f"with `--workdir {path}`, to go on."
        )
    return path


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except GatedRepoError:
        reason = f"its owner asks for consent: give it at https://huggingface.co/{name}, then `hf auth login`"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private: check the name, or `hf auth login`"
    except (OSError, ValueError) as error:
        first = str(error).split("\n")[0]
        reason = (
            f"it is not in the hub's cache and could not be fetched ({type(error).__name__}: {first}): "
            f"go online (HF_HUB_OFFLINE must not be set), or run `hf download {name}` where there is a "
            "network and give the folder it prints"
        )
    raise InputError(
        f"MODEL {name!r} was not found. Looked for a folder of that name here ({Path(name).absolute()}), and "
        f"on the Hugging Face hub: {reason}."
    )
