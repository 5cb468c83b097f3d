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
