from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scaledreamer.cli import evaluate

PROMPTS = ("a red mug", "a blue box")
STRIP_PX = 8 * 128 + 7 * 4


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "two.txt"
    path.write_text("# two\n" + "\n".join(PROMPTS))
    return str(path)


def run(folders: Path, corpus: str, *arguments: str) -> int:
    judge = ("--judge", str(folders / "clip"))
    return evaluate.main([*judge, "--device", "cpu", "--prompts", corpus, *arguments])


def test_a_generator_is_judged_beside_its_ceiling(
    folders: Path, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a" / "b"
    generator = ("--checkpoint", str(folders / "generator"))
    assert run(folders, corpus, *generator, "--output", str(output)) == 0
    assert "recall_at_1" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["results.json", "two.png"]
    scores = json.loads((output / "results.json").read_text())[corpus]
    assert scores["prompts"] == 2
    assert set(scores["per_prompt"]) == set(PROMPTS)
    assert 0 < scores["silhouette_iou"] < 1
    assert 0.8 < scores["ceiling_silhouette_iou"] < 1
    assert "janus_rate" not in scores  # neither a mug nor a box has a front
    assert set(scores["per_kind"]) == {"mug", "box"}
    assert sum(row["prompts"] for row in scores["per_form"].values()) == len(scores["per_prompt"])
    assert scores["per_kind"]["mug"]["recall_at_1"] == scores["per_prompt"]["a red mug"]
    image = np.asarray(Image.open(output / "two.png"))
    assert image.shape[1] == STRIP_PX
    middle = image[64, 64 + 132 * np.arange(4)] / 255  # the ball's colours, by position
    points = np.array([(1, 0, 0.26), (0, 1, 0.26), (-1, 0, 0.26), (0, -1, 0.26)])
    assert np.abs(middle - (points * 0.5 + 1) / 2).max() < 0.06


def test_a_prior_is_judged_on_its_samples(folders: Path, corpus: str, tmp_path: Path) -> None:
    prior = ("--prior", str(folders / "prior"), "--sampling-steps", "1")
    assert run(folders, corpus, *prior, "--output", str(tmp_path)) == 0
    scores = json.loads((tmp_path / "results.json").read_text())[corpus]
    assert "silhouette_iou" not in scores
    image = np.asarray(Image.open(tmp_path / "two.png"))
    assert image.shape[1] == STRIP_PX
    sample = image[:128, :128].reshape(16, 8, 16, 8, 3)
    assert (sample == sample[:, :1, :, :1]).all(), "pixels are blurred, not enlarged"
    assert sample.std() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "toybox:nowhere"], "there are train, unseen_combination"),
        (["--prompts", "no/such.txt"], "no/such.txt, which is no file"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
        (["--count", "0"], "--count: got 0; at least 1"),
        (["--prior", "toybox:prior", "--sampling-steps", "0"], "--sampling-steps: got 0"),
        (["--prior", "toybox:prior", "--checkpoint", "runs/a"], "not allowed with argument"),
        (["--output", "/dev/null/x"], "--output /dev/null/x: cannot write there"),
        (["--checkpoint", "no/such"], "no such folder"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_user_errors_are_one_line_and_leave_nothing(
    folders: Path,
    corpus: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the judge was loaded before the arguments were checked")

    monkeypatch.setattr(evaluate.clip_score, "load", refuse)
    output = tmp_path / "out"
    assert run(folders, corpus, "--output", str(output), *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not output.exists()


def test_a_prompt_without_a_scene_is_found_before_any_work(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "zebra.txt").write_text("a red mug\na red zebra\n")
    assert run(folders, str(tmp_path / "zebra.txt"), "--checkpoint", "no/such") == 2
    assert "unknown to the text encoder: 'zebra'" in capsys.readouterr().err


def test_unavailable_cuda_and_a_missing_judge_are_errors(
    folders: Path,
    corpus: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(folders, corpus, "--device", "cuda") == 2
    assert "no CUDA device is available" in capsys.readouterr().err
    generator = ("--checkpoint", str(folders / "generator"))
    assert run(folders, corpus, *generator, "--judge", "no/such") == 2
    assert "no/such" in capsys.readouterr().err


def test_sheets_have_names_of_their_own() -> None:
    corpora = (
        *("data/prompts/quickstart.txt", "toybox:train", "p.json#a", "p.json#b", "q/train.txt"),
        *("r/train.json", "p.json#a/b", "p-a.txt"),
    )
    assert list(evaluate._sheet_names(corpora).values()) == [
        *("quickstart", "train", "p-a", "p-b", "train-2", "train-3", "p-a_b", "p-a-2"),
    ]
