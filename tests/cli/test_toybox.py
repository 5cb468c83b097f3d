from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scaledreamer.cli import toybox
from scaledreamer.toybox.world import grammar


def test_ground_truth_is_drawn_from_the_named_sides(tmp_path: Path) -> None:
    path = tmp_path / "truth.png"
    words = ("--prompt", "a red box with a blue lid", "--azimuths", "0", "90", "--px", "32")
    assert toybox.main(["render", *words, "--output", str(path)]) == 0
    image = np.asarray(Image.open(path)).astype(int)
    assert image.shape[1] == 2 * 32 + 4
    front = image[18, 16]
    assert front[0] > 2 * front[2], "the box's red side"
    assert (image[2, 2] == 255).all()


def test_the_catalogue_shows_every_kind_once(tmp_path: Path) -> None:
    captions = toybox.catalogue_captions()
    items = [grammar.parse(caption).item for caption in captions]
    assert [item.kind for item in items] == list(grammar.KIND_NAMES)
    assert all(item.accent is not None for item in items)
    path = tmp_path / "kinds.png"
    assert toybox.main(["render", "--kinds", "--px", "16", "--output", str(path)]) == 0
    image = np.asarray(Image.open(path))
    assert image.shape[1] == 6 * (2 * 16 + 4 + 8)


def test_samples_of_both_regimes_stand_beside_the_truth(folders: Path, tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    words = ("--prompt", "a red mug", "--azimuths", "0", "90", "--px", "32")
    prior = ("--prior", str(folders / "prior"), "--sampling-steps", "2", "--device", "cpu")
    assert toybox.main(["sample", *words, *prior, "--output", str(path)]) == 0
    image = np.asarray(Image.open(path))
    assert image.shape[1] == 8 * 32 + 7 * 4  # three groups of two, two empty views between
    gap = image[:32, 2 * 36 : 2 * 36 + 32]
    assert (gap == 255).all()
    samples = image[:32, 3 * 36 : 3 * 36 + 64]
    assert samples.std() > 1


def test_scores_are_a_table_and_a_picture(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scores.png"
    sources = (
        *("--prior", str(folders / "prior"), "--checkpoint", str(folders / "generator")),
        *("--judge", str(folders / "clip"), "--sampling-steps", "1", "--device", "cpu"),
    )
    words = ("--prompt", "a red mug", "--px", "32")
    assert toybox.main(["score", *words, *sources, "--output", str(path)]) == 0
    said = capsys.readouterr()
    report, _, last = said.out.rpartition("}\n")
    assert last.strip() == str(path)
    (scores,) = json.loads(report + "}").values()
    assert set(scores) == {"truth R@1", "prior R@1", "generator R@1", "generator IoU"}
    assert 0 < scores["generator IoU"] < 1
    assert np.asarray(Image.open(path)).shape[1] == 14 * 36 - 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["render", "--prompt", "a red mugg"], r"'mugg' (did you mean 'mug'?)"),
        (["render", "--prompt", "a red cat on a blue tree"], "unknown support 'tree'"),
        (["render"], "one of the arguments --prompt --prompts --kinds is required"),
        (["render", "--kinds", "--px", "4"], "--px: got 4; at least 8"),
        (["render", "--kinds", "--output", "no/such/a.png"], "--output: no folder no/such"),
        (["sample", "--prompt", "a red mug", "--sampling-steps", "0"], "at least 1"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert toybox.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert message in line
