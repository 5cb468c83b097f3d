"""Files are whole or absent, tensors survive, and a prompt's identity ignores its spelling."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaledreamer import storage
from scaledreamer.storage import (
    atomic_folder,
    atomic_write,
    file_stem,
    load_tensors,
    normalise_text,
    prompt_id,
    read_json,
    resolve_folder,
    save_tensors,
    sha256_file,
    write_json,
)


def test_atomic_write_replaces_or_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.txt"
    with atomic_write(path) as handle:
        handle.write("old ü")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(path) as handle:
        handle.write("half")
        raise RuntimeError("stop")
    assert path.read_text(encoding="utf-8") == "old ü"
    with atomic_write(path, "wb") as handle:
        handle.write(b"\x00new")
        assert path.read_text(encoding="utf-8") == "old ü"
    assert path.read_bytes() == b"\x00new"
    assert [one.name for one in path.parent.iterdir()] == ["state.txt"]


def test_atomic_write_leaves_the_permissions_to_the_umask(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(former)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_a_killed_writer_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    script = (
        "import os, sys\n"
        "from scaledreamer.storage import atomic_write\n"
        "with atomic_write(sys.argv[1]) as handle:\n"
        "    handle.write('{\"st')\n"
        "    handle.flush()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert killed.returncode == -9
    assert read_json(path) == {"step": 1}


def test_atomic_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "step_1"
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(target) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("stop")
    assert list(target.parent.iterdir()) == []
    for content in ("first", "second"):
        with atomic_folder(target) as folder:
            (folder / "engine").mkdir()
            (folder / "engine" / content).write_text(content)
            assert folder.parent == target.parent
            assert target.exists() == (content == "second")
    assert [one.name for one in target.rglob("*")] == ["engine", "second"]
    assert list(target.parent.iterdir()) == [target]


def test_atomic_folder_puts_the_former_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "step_1"
    with atomic_folder(target) as folder:
        (folder / "first").touch()
    rename = Path.rename

    def fail_on_target(self: Path, other: Path) -> Path:
        if other == target and not (self / "first").exists():
            raise OSError("disk gone")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail_on_target)
    with pytest.raises(OSError, match="disk gone"), atomic_folder(target):
        pass
    assert [one.name for one in tmp_path.rglob("*")] == ["step_1", "first"]


def test_unwritable_places_are_one_line_errors(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot write .*a\.json: File exists \(.*file\)"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(ValueError, match="it is a folder"):
        write_json(tmp_path, {})
    with pytest.raises(ValueError, match=r"cannot write .*step: Not a directory"):
        atomic_folder(tmp_path / "file" / "step").__enter__()
    with pytest.raises(ValueError, match="it is a file"):
        atomic_folder(tmp_path / "file").__enter__()
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2.5, None], "a": "ü"})
    assert read_json(path) == {"b": [1, 2.5, None], "a": "ü"}
    assert path.read_text(encoding="utf-8").endswith("}\n")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*a\.json: not valid JSON"):
        read_json(path)
    with pytest.raises(ValueError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")


def test_sha256_of_a_file_longer_than_a_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_tensors_round_trip_whatever_their_layout(tmp_path: Path) -> None:
    base = torch.randn(4, 6, requires_grad=True)
    tensors = {
        "base": base,
        "same": base,
        "slice": base[1:3, ::2],
        "transposed": base.T,
        "expanded": torch.ones(1).expand(3, 2),
        "half": base.to(torch.bfloat16),
        "index": torch.arange(3),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(1.5),
    }
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors, {"format": "1"})
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
        assert not loaded[name].requires_grad


def test_unreadable_tensors_are_errors_that_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=r"weights .*a\.safetensors: no such file"):
        load_tensors(path)
    save_tensors(path, {"a": torch.zeros(64)})
    content = path.read_bytes()
    for broken in (b"", b"not tensors at all", content[:40], content[:-1], b"\xff" * 8 + content):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"weights .*a\.safetensors: corrupt"):
            load_tensors(path)


def test_folders_by_path_and_by_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prior").mkdir()
    (tmp_path / "card.md").touch()
    monkeypatch.setattr(storage, "_WEIGHTS", tmp_path)
    assert resolve_folder("toybox:prior") == tmp_path / "prior"
    assert resolve_folder(str(tmp_path)) == tmp_path
    for unknown in ("toybox:pior", "toybox:", "toybox:../prior", "toybox:card.md"):
        with pytest.raises(ValueError, match=r"shipped are: prior$"):
            resolve_folder(unknown)
    with pytest.raises(ValueError, match="no such folder; give a path or toybox:NAME"):
        resolve_folder(str(tmp_path / "card.md"))


def test_prompt_identity_ignores_blanks_and_unicode_form() -> None:
    assert normalise_text("  a\tred \n mug ") == "a red mug"
    assert prompt_id("cafe\u0301  table") == prompt_id("caf\u00e9 table")
    assert prompt_id("a red mug") != prompt_id("a Red mug")
    assert prompt_id("a red mug") == hashlib.blake2b(b"a red mug", digest_size=16).hexdigest()
    assert len(prompt_id("")) == 32


@given(st.text(max_size=200))
def test_file_stems_are_safe_on_every_file_system(text: str) -> None:
    stem = file_stem(text)
    slug, _, digits = stem.rpartition("_")
    assert digits == prompt_id(text)[:8]
    assert slug
    assert len(stem) <= 49
    assert all(c in "abcdefghijklmnopqrstuvwxyz0123456789_" for c in stem)


def test_file_stem_reads_like_its_prompt() -> None:
    stem = file_stem("A red mug, with a white handle!")
    assert stem.startswith("a_red_mug_with_a_white_handle_")
    assert file_stem("日本").startswith("prompt_")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storage.cache_folder("toybox") == tmp_path / "scaledreamer" / "toybox"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert storage.cache_folder("x") == Path.home() / ".cache" / "scaledreamer" / "x"
