"""`scaledreamer export`: a folder that generates what the checkpoint generates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaledreamer.cli import export
from scaledreamer.pipeline import TextTo3D
from scaledreamer.storage import load_tensors
from tests.toy_generator import save_generator


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_exported_folder_gives_the_same_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
):
    source, target = save_generator(tmp_path), tmp_path / "out"
    assert export.main([str(source), str(target), "--dtype", dtype]) == 0
    assert "1 weights" in capsys.readouterr().out
    assert load_tensors(target / "ema.safetensors")["radius"].dtype == getattr(torch, dtype)
    points = torch.rand(1, 50, 3) * 2 - 1
    before, after = (
        TextTo3D.from_pretrained(folder)("a red ball").geometry(points)
        for folder in (source, target)
    )
    assert torch.equal(before, after)


def test_a_missing_run_is_a_users_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert export.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["generator", ".", "thesis"])
def test_only_an_earlier_export_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
):
    source, target = save_generator(tmp_path), tmp_path / "out"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert export.main([str(source), str(tmp_path / output)]) == 2
    assert "name another folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    target.mkdir()
    for _ in range(2):
        assert export.main([str(source), str(target)]) == 0


def test_exporting_a_run_onto_itself_keeps_it(tmp_path: Path):
    root = tmp_path / "run" / "checkpoints"
    root.mkdir(parents=True)
    step = save_generator(tmp_path).rename(root / "step_00000003")
    for output in (root.parent, root, step):
        assert export.main([str(root.parent), str(output)]) == 2
    assert (step / "ema.safetensors").is_file()


def test_a_field_without_structure_has_no_scene_to_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source, target = save_generator(tmp_path), tmp_path / "out"
    assert export.main([str(source), str(target), "--prompt", "a red ball"]) == 2
    assert "no structure" in capsys.readouterr().err
    assert not target.exists()
