from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledreamer.storage import read_json, sha256_file, write_json
from scaledreamer.training import checkpoint
from tests.training import killed_save
from tests.training.killed_save import contents

ROOT = Path(__file__).parents[2]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir())


def save(run: Path, *steps: int, keep_last: int = 10) -> list[Path]:
    return [checkpoint.save(run, contents(step), keep_last) for step in steps]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 1234)
    assert folder == tmp_path / "checkpoints" / "step_00001234"
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00001234\n"
    loaded = checkpoint.load(folder)
    expected = contents(1234)
    assert loaded.step == 1234
    assert torch.equal(loaded.model["weight"], expected.model["weight"])
    assert torch.equal(loaded.ema["weight"], expected.ema["weight"])
    assert loaded.engine["optimizer"].keys() == expected.engine["optimizer"].keys()
    assert loaded.state == {**expected.state, "step": 1234}
    assert not list(folder.rglob("*.p[tk]*"))


@pytest.mark.parametrize("keep_last", [1, 2])
def test_pruning_keeps_the_newest(tmp_path: Path, keep_last: int) -> None:
    save(tmp_path, 3, 6, 9, keep_last=keep_last)
    assert names(tmp_path) == ["step_00000003", "step_00000006", "step_00000009"][-keep_last:]


def test_going_back_prunes_the_left_branch_not_what_latest_names(tmp_path: Path) -> None:
    save(tmp_path, 3, 6, 9)
    save(tmp_path, 4, keep_last=2)
    assert names(tmp_path) == ["step_00000003", "step_00000004"]
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoints" / "step_00000004"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 3)
    (folder / "model.safetensors").write_bytes(b"damaged")
    save(tmp_path, 3)
    assert checkpoint.load(folder).step == 3


@pytest.mark.parametrize(
    "file", ["model.safetensors", "ema.safetensors", "state.json", "engine/optimizer.safetensors"]
)
@pytest.mark.parametrize("how", ["altered", "missing"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path: Path, file: str, how: str) -> None:
    before, newest = save(tmp_path, 3, 6)
    content = bytearray((newest / file).read_bytes())
    content[-1] ^= 1
    (newest / file).unlink()
    if how == "altered":
        (newest / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"step_00000006: {file} is (damaged|missing)"):
        checkpoint.load(newest)
    with pytest.warns(UserWarning, match="trying the one before"):
        assert checkpoint.newest(tmp_path) == before


def test_a_folder_without_manifest_and_another_format_are_refused(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 3)
    rewrite(folder, "config.json", {**read_json(folder / "config.json"), "format": 99})
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        checkpoint.load(folder)


def test_find_takes_a_checkpoint_or_a_run(tmp_path: Path) -> None:
    _, newest = save(tmp_path, 3, 6)
    assert checkpoint.find(tmp_path) == newest
    assert checkpoint.find(newest) == newest
    with pytest.raises(ValueError, match="expected a checkpoint or a run"):
        checkpoint.find(tmp_path / "missing")


def rewrite(folder: Path, name: str, value: Any) -> None:
    """Changes a file and its hash, so that only what it says is wrong."""
    write_json(folder / name, value)
    manifest = read_json(folder / "manifest.json")
    manifest["files"][name] = sha256_file(folder / name)
    write_json(folder / "manifest.json", manifest)


def manifest(value: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "manifest.json", value)


def unlist(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        value = read_json(folder / "manifest.json")
        del value["files"][name]
        write_json(folder / "manifest.json", value)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        manifest({}),
        manifest([]),
        manifest(None),
        manifest({"format": 1, "files": ["config.json"]}),
        manifest({"format": 1, "files": {"config.json": 3}}),
        manifest({"format": 1, "files": {}}),
        manifest({"format": 2, "files": {}}),
        *(
            unlist(name)
            for name in (
                "config.json",
                "state.json",
                "model.safetensors",
                "ema.safetensors",
                "engine/optimizer.safetensors",
            )
        ),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff{"),
        lambda folder: rewrite(folder, "state.json", {"step": "6"}),
        lambda folder: rewrite(folder, "state.json", []),
        lambda folder: rewrite(folder, "config.json", None),
        lambda folder: rewrite(folder, "config.json", {}),
    ],
)
def test_malformed_checkpoints_are_refused_and_the_one_before_is_taken(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    before, newest = save(tmp_path, 3, 6)
    damage(newest)
    for read in (checkpoint.verify, checkpoint.load):
        with pytest.raises(ValueError, match="step_00000006") as caught:
            read(newest)
        assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="trying the one before"):
        assert checkpoint.newest(tmp_path) == before


def test_a_malformed_engine_is_refused(tmp_path: Path) -> None:
    (folder,) = save(tmp_path, 3)
    rewrite(folder, "engine/optimizer.safetensors", "no tensors")
    with pytest.raises(ValueError, match=r"optimizer\.safetensors: corrupt file"):
        checkpoint.load(folder)


@pytest.mark.multi
@pytest.mark.parametrize(
    ("file", "survivor"), [("optimizer.safetensors", 1), ("manifest.json", 1), ("latest", 1)]
)
def test_kill_during_a_save_leaves_a_loadable_checkpoint(
    tmp_path: Path, file: str, survivor: int
) -> None:
    command = [sys.executable, "-m", killed_save.__name__, str(tmp_path), file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "saving\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.load(found).step == survivor
    save(tmp_path, 2)
    assert checkpoint.load(checkpoint.find(tmp_path)).step == 2
    assert not list((tmp_path / "checkpoints").glob(".*"))
