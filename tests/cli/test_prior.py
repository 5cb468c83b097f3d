"""`scaledreamer prior`: the check of a folder, and the conversion of a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from scaledreamer.cli import prior
from tests.encoders import folders as text_folders
from tests.priors import folders, ldm_layout


@pytest.mark.parametrize(
    ("save", "name", "width"),
    [
        (folders.save_toybox, "unet", 16),
        (folders.save_mvdream, "mvdream", 4 * 16),
        (folders.save_flux, "flux", 16),
    ],
)
def test_check_tells_what_a_folder_is_and_draws_it(
    save: Any, name: str, width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "prior")
    picture = tmp_path / "picture.png"
    words = ["check", str(tmp_path / "prior"), "--steps", "2", "--output", str(picture)]
    assert prior.main([*words, "--prompt", "a red box"]) == 0
    facts = json.loads(capsys.readouterr().out.rpartition("}")[0] + "}")
    assert facts["prior.name"] == name
    assert facts["image"] == "16 px"
    assert facts["alpha at t = 0.1, 0.5, 1"].startswith(("0.9", "0.8"))
    with Image.open(picture) as image:
        assert image.size == (width, 16)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("unet", "unet/config.json: missing"),
        ("model_index.json", "model_index.json: missing; a prior is a diffusers pipeline folder"),
    ],
)
def test_check_names_what_is_missing(
    damage: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.save_toybox(tmp_path / "prior")
    path = tmp_path / "prior" / damage
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = ["check", str(tmp_path / "prior"), "--output", str(tmp_path / "picture.png")]
    capsys.readouterr()
    assert prior.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "picture.png").exists()


def test_an_unknown_hub_id_offline_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["check", "nobody/no-such-prior", "--output", str(tmp_path / "picture.png")]
    assert prior.main(words) == 2
    error = capsys.readouterr().err
    assert "got 'nobody/no-such-prior'; no such folder, nor in the local cache" in error
    assert error.count("\n") == 1


def test_convert_makes_a_folder_that_check_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = ldm_layout.whole(
        ldm_layout.unet(64, (1, 2), 1, 64),
        ldm_layout.vae(32, (1, 1, 1, 2), 1),
        ldm_layout.open_clip(words=58, width=64, layers=3),
        is_open_clip=True,
    )
    torch.save(
        {name: 0.05 * torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "a.pt"
    )
    text_folders.save_plain_tower(tmp_path / "sd")
    made = tmp_path / "made"
    words = ["convert", str(tmp_path / "a.pt"), str(made), "--tokenizer", str(tmp_path / "sd")]
    assert prior.main(words) == 0
    assert f"prior.name=mvdream prior.folder={made}" in capsys.readouterr().out
    assert prior.main(["check", str(made), "--steps", "0", "--set", "image_px=32"]) == 0
    assert json.loads(capsys.readouterr().out)["views together"] == 4
    assert prior.main([*words[:1], str(tmp_path / "none.pt"), *words[2:]]) == 2
    assert "none.pt" in capsys.readouterr().err


def test_settings_of_the_configuration_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders.save_sd3(tmp_path / "prior")
    words = ["check", str(tmp_path / "prior"), "--steps", "0"]
    assert prior.main([*words, "--set", "use_t5=false", "t5_tokens=7"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["text"].startswith("27 tokens")
    assert prior.main([*words, "--set", "use_t6=false"]) == 2
    assert "did you mean 'use_t5'" in capsys.readouterr().err
