"""A folder written by this package is read unchanged, or refused with the name of a file."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from rlhf_lightning import file_hashes, hashes
from rlhf_lightning.callbacks import DurableCheckpointIO
from rlhf_lightning.durable import (
    forget_files,
    manifest_of,
    read_manifest,
    save_with_manifest,
    what_is_broken,
    write_manifest,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.file_hashes import sha256_of
from rlhf_lightning.hashes import FILE, check_files, check_model_files, forget_hashes, read_hashes, write_hashes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "additional_chat_templates").mkdir(parents=True)
    (root / "config.json").write_text('{"a": 1}')
    (root / "model.safetensors").write_bytes(bytes(range(120)))
    (root / "additional_chat_templates/tools.jinja").write_text("{{ messages }}")
    (root / "README.md").write_text("a card")
    (root / ".rlhf-export.json").write_text("{}")
    write_hashes(root)
    return root


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(content))


def bits(content: bytes) -> list[int]:
    """Return a bit of every byte, each time the next one of its eight."""
    return [8 * at + at % 8 for at in range(len(content))]


def refused(folder: Path, weights: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        check_model_files(folder, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_as_it_was_written_passes(folder: Path) -> None:
    check_model_files(folder, weights=True)
    listed = read_hashes(folder)
    assert listed is not None
    assert sorted(listed) == ["additional_chat_templates/tools.jinja", "config.json", "model.safetensors"]


def test_a_folder_without_hashes_is_read_as_it_is(folder: Path) -> None:
    flip(folder / "config.json", 3)
    forget_hashes(folder)
    check_model_files(folder, weights=True)
    check_model_files("org/name", weights=True)


@pytest.mark.parametrize("name", ["additional_chat_templates/tools.jinja", "config.json", "model.safetensors"])
def test_every_byte_of_every_file_counts(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for bit in bits(whole):
        flip(folder / name, bit)
        assert f"{name} has changed since it was written" in refused(folder)
        (folder / name).write_bytes(whole)
    for other in (whole[:-1], whole + b"x", bytes(len(whole)), b""):
        (folder / name).write_bytes(other)
        assert f"{name} has changed since it was written" in refused(folder)


def test_every_byte_of_the_list_itself_counts(folder: Path) -> None:
    whole = (folder / FILE).read_bytes()
    for bit in bits(whole):
        flip(folder / FILE, bit)
        assert f"{FILE} is damaged; restore it, or delete it" in refused(folder, weights=False)
        (folder / FILE).write_bytes(whole)
    for other in (whole[:-1], whole + b"\n", b"", b"[]", b"null", b'{"files": 3}', b"[" * 100_000):
        (folder / FILE).write_bytes(other)
        assert f"{FILE} is damaged" in refused(folder, weights=False)


def test_a_missing_and_a_new_file_are_refused(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    assert "generation_config.json did not exist" in refused(folder, weights=False)
    (folder / "generation_config.json").unlink()
    (folder / "additional_chat_templates/more.jinja").write_text("")
    assert "more.jinja did not exist" in refused(folder, weights=False)
    (folder / "additional_chat_templates/more.jinja").unlink()
    (folder / "config.json").unlink()
    assert "config.json is missing" in refused(folder, weights=False)


def test_the_card_and_files_that_no_loader_reads_may_change(folder: Path) -> None:
    (folder / "README.md").write_text("another card")
    (folder / ".rlhf-export.json").unlink()
    (folder / "model.gguf").write_bytes(b"made from it")
    check_model_files(folder, weights=True)


def test_before_weights_are_read_their_size_alone_is_looked_at(folder: Path) -> None:
    flip(folder / "model.safetensors", 100)
    check_model_files(folder)
    (folder / "model.safetensors").write_bytes(b"short")
    assert "model.safetensors has changed" in refused(folder, weights=False)


def test_a_list_cannot_name_files_outside_its_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for name in ("../secret", str(tmp_path / "secret"), "a/../../secret"):
        files = {name: {"size": 1, "sha256": sha256_of(tmp_path / "secret")}}
        (folder / FILE).write_text(hashes._text(files))
        assert f"{FILE} is damaged" in refused(folder)


def test_a_device_is_not_hashed(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    assert "config.json is missing" in refused(folder)


def test_of_a_run_only_the_files_asked_for_are_looked_at(tmp_path: Path) -> None:
    for name in ("config.yaml", "summary.json", "other.json"):
        (tmp_path / name).write_text(name)
    write_hashes(tmp_path, ("config.yaml", "summary.json", "metrics.jsonl"))
    (tmp_path / "other.json").write_text("new")
    check_files(tmp_path)
    flip(tmp_path / "summary.json", 1)
    check_files(tmp_path, ("config.yaml",))
    with pytest.raises(UserError, match=r"summary\.json has changed"):
        check_files(tmp_path, ("config.yaml", "summary.json"))


def test_a_large_file_is_hashed_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, made = tmp_path / "model.safetensors", []
    file.write_bytes(b"x" * 100)
    monkeypatch.setattr(file_hashes, "LARGE", 100)
    monkeypatch.setattr(file_hashes.hashlib, "sha256", lambda new=hashlib.sha256: made.append(1) or new())
    first = sha256_of(file)
    assert sha256_of(file) == first
    assert len(made) == 1
    file.write_bytes(b"y" * 100)
    assert sha256_of(file) != first


def test_further_processes_leave_large_files_to_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(folder / "model.safetensors", 0)
    monkeypatch.setattr(hashes, "LARGE", 100)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_model_files(folder, weights=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "model.safetensors has changed" in refused(folder)


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_with_manifest(path, lambda file: file.write(b"12345"), epoch=1, global_step=5, cannot_resume=None)
    manifest = manifest_of(path)
    whole = manifest.read_bytes()
    assert what_is_broken(path) is None
    for bit in bits(whole):
        flip(manifest, bit)
        assert read_manifest(path) == []
        assert what_is_broken(path) == "last.ckpt.manifest.json cannot be read"
        manifest.write_bytes(whole)
    for other in (b"", b"[]", b'{"file": "last.ckpt", "entries": [1]}', whole[:-1], b"[" * 100_000):
        manifest.write_bytes(other)
        assert what_is_broken(path) is not None


def test_a_random_text_is_never_a_list(folder: Path) -> None:
    draw = random.Random(0)
    for _ in range(50):
        (folder / FILE).write_text(json.dumps({"files": {"config.json": draw.choice([None, 1, [], {}, "x"])}}))
        assert f"{FILE} is damaged" in refused(folder)


def test_a_checkpoint_is_loaded_as_its_manifest_says(tmp_path: Path) -> None:
    """Also outside the commands, which check it earlier."""
    path = tmp_path / "last.ckpt"
    plugin = DurableCheckpointIO()
    content = {"state_dict": {}, "pytorch-lightning_version": "2", "global_step": 3, "x": torch.arange(4000.0)}
    plugin.save_checkpoint(content, path)
    assert plugin.load_checkpoint(path)["global_step"] == 3
    for file in (path, manifest_of(path)):
        whole = file.read_bytes()
        flip(file, 8 * (len(whole) // 2))
        with pytest.raises(UserError, match=r"ckpt: .*last\.ckpt is broken: .*take another one, or ckpt=last"):
            plugin.load_checkpoint(path)
        file.write_bytes(whole)


def test_every_file_of_a_sharded_checkpoint_counts(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    torch.save({"epoch": 1}, path / "meta.pt")
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        (path / name).write_bytes(name.encode())
    assert what_is_broken(path) is None  # another tool's
    write_manifest(path, saved=7)
    assert what_is_broken(path) is None
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for changed in (whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"x"):
            file.write_bytes(changed)
            assert str(what_is_broken(path)).startswith((f"{file.name} has changed since", "the folder has no whole"))
        file.write_bytes(whole)
    (path / "__1_0.distcp").unlink()
    assert what_is_broken(path) == "__1_0.distcp is missing"
    forget_files(path)  # the next save begins, in place
    assert what_is_broken(path) is None
    assert read_manifest(path) == [{"saved": 7}]
    flip(manifest_of(path), 40)
    assert what_is_broken(path) == "last.ckpt.manifest.json cannot be read"
