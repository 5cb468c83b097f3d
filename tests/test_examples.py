"""The examples run, at a size that takes seconds."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

from scaledreamer.config import component_names

ROOT = Path(__file__).parents[1]
ONE_STEP = ROOT / "examples" / "one_step_2d.py"
TINY = ["--steps", "2", "--batch-size", "2", "--width", "8", "--sample-steps", "2"]


@pytest.mark.parametrize("loss", component_names("scaledreamer.distillation"))
def test_the_one_step_generator_trains_and_draws_its_sheet(
    loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, output = tmp_path / "two.txt", tmp_path / "sheets" / f"{loss}.png"
    corpus.write_text("a red mug with a white handle\na green tree\n", encoding="utf-8")
    main = runpy.run_path(str(ONE_STEP))["main"]
    main([*TINY, "--loss", loss, "--prompts", str(corpus), "--output", str(output)])
    with Image.open(output) as sheet:
        assert sheet.width == 8 * (2 * 32 + 4) - 4
        assert sheet.height > 2 * 2 * 32
    assert f"{loss}: " in capsys.readouterr().out


def test_an_unknown_loss_is_named(tmp_path: Path) -> None:
    main = runpy.run_path(str(ONE_STEP))["main"]
    with pytest.raises(ValueError, match="got component 'asdf'"):
        main([*TINY, "--loss", "asdf", "--output", str(tmp_path / "sheet.png")])


def test_the_examples_are_short() -> None:
    assert all(
        len(path.read_text(encoding="utf-8").splitlines()) <= 150
        for path in (ROOT / "examples").glob("*.py")
    )
