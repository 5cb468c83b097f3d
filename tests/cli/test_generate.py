from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from scaledreamer.cli import generate
from scaledreamer.data.corpus import load_prompts
from scaledreamer.storage import file_stem, prompt_id
from scaledreamer.toybox.world.grammar import split_of
from tests.toy_generator import EMPTY_PROMPT, save_generator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_generator(tmp_path_factory.mktemp("shipped")))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "a" / "b"


def run(checkpoint: str, output: Path, *arguments: str) -> int:
    small = ("--checkpoint", checkpoint, "--output", str(output), "--resolution", "16")
    return generate.main([*small, "--device", "cpu", *arguments])


def test_prompts_become_files_and_paths_on_stdout(
    checkpoint: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("--prompt", "a red mug", "--prompt", "a  red mug ", "--prompt", "a blue box")
    assert run(checkpoint, output, *prompts, "--formats", "glb", "stl") == 0
    names = [
        f"{file_stem(prompt)}.{suffix}"
        for prompt in ("a red mug", "a blue box")
        for suffix in ("glb", "stl")
    ]
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(output / name) for name in names]
    assert said.err.startswith("2 of 2 prompts in")
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    mesh = trimesh.load(output / names[0], force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    assert mesh.is_watertight


def test_json_report(
    checkpoint: str, output: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text(f"a red mug\n\n{EMPTY_PROMPT}\na zebra\n")
    assert run(checkpoint, output, "--prompts", str(tmp_path / "prompts.txt"), "--json") == 1
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert {key: report[key] for key in ("format", "device", "resolution", "seed", "failed")} == {
        "format": 1,
        "device": "cpu",
        "resolution": 16,
        "seed": 0,
        "failed": 1,
    }
    assert report["seconds"]["load"] > 0
    mug, empty, zebra = report["results"]
    assert mug["id"] == prompt_id("a red mug")
    assert Path(mug["files"]["glb"]).is_file()
    assert set(mug["seconds"]) == {"encode", "generate", "surface", "colour", "write"}
    assert set(mug["counts"]) == {"vertices", "faces", "floaters_dropped"}
    assert mug["error"] is None
    assert (empty["files"], empty["counts"]) == ({}, {})
    assert "surface is empty" in empty["error"]
    assert zebra["unknown_words"] == {"zebra": None}
    assert zebra["caption"] == "a zebra"
    warning, error = sorted(said.err.splitlines(), reverse=True)
    assert warning == "warning: 'a zebra': unknown to the text encoder: 'zebra'"
    assert error.startswith(f"error: '{EMPTY_PROMPT}': the surface is empty")


def test_preview_is_a_strip_of_four_views(checkpoint: str, output: Path) -> None:
    assert run(checkpoint, output, "--prompt", "a red mug", "--preview") == 0
    image = np.asarray(Image.open(output / f"{file_stem('a red mug')}.png"))
    assert image.shape[1] == 4 * 256 + 3 * 4
    centres = image[128, 128 + 260 * np.arange(4)] / 255
    points = np.array([(1, 0, 0.26), (0, 1, 0.26), (-1, 0, 0.26), (0, -1, 0.26)])
    assert np.abs(centres - (points * 0.5 + 1) / 2).max() < 0.05
    assert (image[258:] < 100).any(), "the caption is missing"


def test_comments_in_the_quickstarts_prompts_are_no_prompts() -> None:
    path = str(ROOT / "data/prompts/quickstart.txt")
    prompts = generate._read_prompts(generate._parser().parse_args(["--prompts", path]))
    assert len(prompts) == 8
    assert prompts == load_prompts(path)
    assert all(split_of(prompt) for prompt in prompts)


def test_prompts_from_stdin(checkpoint: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("# one\na red mug\n\na  red mug\n"))
    assert run(checkpoint, output, "--prompts", "-") == 0
    assert len(list(output.iterdir())) == 1


def test_examples_are_prompts_of_the_grammar(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 12
    assert {split_of(line) for line in lines} == {"train"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "--prompt: got an empty text"),
        (["--prompt", "a mug", "--prompt", " \t"], "--prompt: got an empty text"),
        ([], "one of the arguments --prompt --prompts --examples is required"),
        (["--prompt", "a", "--resolution", "-3"], "resolution: got -3; must lie within 16 to 512"),
        (["--prompt", "a", "--resolution", "big"], "invalid int value: 'big'; see generate --help"),
        (["--prompt", "a", "--formats", "fbx"], "invalid choice: 'fbx'"),
        (["--prompt", "a", "--checkpoint", "no/such"], "got folder 'no/such'; no such folder"),
        (["--prompt", "a", "--checkpoint", "toybox:no"], "got folder 'toybox:no'; shipped are"),
        (["--prompt", "a", "--checkpoint", str(ROOT)], "expected config.json"),
        (["--prompts", "no/such.txt"], "No such file or directory: no/such.txt"),
        (["--prompts", "/dev/null"], "holds no prompts"),
        (["--prompt", "a", "--output", "/dev/null/x"], "--output /dev/null/x: cannot write there"),
        (["--prompt", "a", "--output", "/dev/null"], "--output /dev/null: cannot write there"),
        (["--prompt", "a", "--color", "red"], "unrecognized arguments: --color red"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value)[:40],
)
def test_user_errors_are_one_line_and_leave_nothing(
    checkpoint: str,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("weights were loaded before the arguments were checked")

    monkeypatch.setattr(generate.TextTo3D, "from_pretrained", load)
    assert run(checkpoint, output, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not output.parent.exists()


def test_corrupt_checkpoint_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = save_generator(tmp_path)
    (broken / "ema.safetensors").write_bytes(b"half of a fi")
    capsys.readouterr()
    assert run(str(broken), tmp_path / "a" / "b", "--prompt", "a mug") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ema.safetensors is damaged" in line
    assert not (tmp_path / "a").exists()


def test_corrupt_encoder_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_generator(tmp_path)
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"half of a fi")
    capsys.readouterr()
    assert run(str(folder), tmp_path / "a" / "b", "--prompt", "a mug") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_unavailable_cuda_is_an_error(
    checkpoint: str,
    output: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(checkpoint, output, "--prompt", "a mug", "--device", "cuda") == 2
    assert "no CUDA device is available" in capsys.readouterr().err


def test_the_script_runs_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "generate.py"), "--prompt", "a", "--resolution", "-3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: resolution: got -3")
    assert not list(tmp_path.iterdir())
