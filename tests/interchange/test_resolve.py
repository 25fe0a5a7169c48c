import json

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from ragjax.errors import InputError
from ragjax.interchange.resolve import resolve


def model_folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    return path


def test_a_hugging_face_folder_is_itself(tmp_path):
    folder = model_folder(tmp_path / "m")
    assert resolve(folder) == resolve(str(folder)) == folder


@pytest.mark.parametrize("stage", ["student", "model"])
def test_a_run_folder_stands_for_the_model_it_made(tmp_path, stage):
    (tmp_path / "config.json").write_text('{"kind": "Compress"}')
    model_folder(tmp_path / "teacher")
    assert resolve(model_folder(tmp_path / stage).parent) == tmp_path / stage


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "Compress"}')
    model_folder(tmp_path / "teacher")
    with pytest.raises(InputError, match=r"not finished yet.*go on"):
        resolve(tmp_path)


def test_a_folder_without_a_model_lists_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(InputError, match=r"config.json, student/config.json.*found weights.bin"):
        resolve(tmp_path)


def test_a_file_asks_for_its_folder(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(InputError, match="give the folder"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/such/folder", "a/b/c", "", "two words", "../up", "name\n"]
)
def test_what_can_be_no_hub_id_is_never_asked_of_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    if name == "":
        (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match=r"Looked for|looked for"):
        resolve(name)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_a_hub_id_is_downloaded_without_pickles_and_code(name, monkeypatch, tmp_path):
    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve(name) == tmp_path
    assert asked["repo"] == name
    chosen = set(
        huggingface_hub.utils.filter_repo_objects(
            ["config.json", "model.safetensors", "model.safetensors.index.json", "vocab.json", "merges.txt",
             "tokenizer.json", "generation_config.json", "pytorch_model.bin", "modeling_evil.py", "64.tflite",
             "rust_model.ot", "onnx/config.json", "onnx/decoder_model.onnx", "flax_model.msgpack"],
            allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"],
        )
    )  # fmt: skip
    assert chosen == {
        "config.json", "model.safetensors", "model.safetensors.index.json", "vocab.json", "merges.txt",
        "tokenizer.json", "generation_config.json",
    }  # fmt: skip


def test_a_folder_goes_before_a_hub_id_of_the_same_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "gpt2")
    assert resolve("gpt2").samefile(tmp_path / "gpt2")


def answered(error):
    """An error as the hub's client raises it, without the HTTP answer it is made from."""
    return error.__new__(error, "Client error '404 Not Found'")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (LocalEntryNotFoundError("Cannot find a snapshot.\nMore."), "go online"),
        (answered(RepositoryNotFoundError), "no such model"),
        (answered(GatedRepoError), "consent"),
        (ConnectionError("no route"), "no route"),
    ],
)
def test_a_failing_hub_says_what_to_do(monkeypatch, tmp_path, error, told):
    def download(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=told) as caught:
        resolve("owner/name")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_offline_without_a_cache_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        resolve("nobody/has-this-model")


def test_a_config_that_is_no_json_is_said(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff{")
    with pytest.raises(InputError, match="no JSON"):
        resolve(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="found a list"):
        resolve(tmp_path)
