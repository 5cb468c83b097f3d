"""What the longer benchmarks compute from their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import compare_losses, learning_curve, prior_regimes
from scaledreamer.data.corpus import load_prompts
from scaledreamer.storage import write_json
from scaledreamer.toybox.world import grammar


def test_diversity_is_zero_for_equal_samples_and_grows_with_their_distance():
    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    same = torch.rand(2, 1, 3, 4, 4).expand(2, 3, 3, 4, 4)
    assert prior_regimes.diversity(same, features)["pixel_rms"] == 0
    assert prior_regimes.diversity(same, features)["judge_distance"] == pytest.approx(0, abs=1e-6)
    two = torch.zeros(1, 2, 3, 4, 4)
    two[0, 0, 0], two[0, 1, 1] = 1.0, 1.0  # red and green: orthogonal features
    found = prior_regimes.diversity(two, features)
    assert found["pixel_rms"] == pytest.approx((2 / 3) ** 0.5)
    assert found["judge_distance"] == pytest.approx(1.0)


def test_a_curve_is_drawn_and_another_judges_curve_is_refused(tmp_path: Path):
    rows = {
        str(step): {
            "prompts_seen": 4 * step,
            **{
                split: {"share_of_ceiling": step / 1000, "silhouette_iou": 0.5}
                for split in learning_curve.NAMES
            },
        }
        for step in (500, 1000)
    }
    report: dict[str, Any] = {"settings": {"judge": "a"}, "versions": {}, "checkpoints": rows}
    learning_curve._draw(report, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 800
    write_json(tmp_path / "curve.json", report)
    assert learning_curve._earlier(tmp_path / "curve.json", {"judge": "a"}) == report
    with pytest.raises(ValueError, match="other settings; name another file"):
        learning_curve._earlier(tmp_path / "curve.json", {"judge": "b"})


def _run(recall: float, **more: Any) -> dict[str, Any]:
    row = {
        "weight": 1.0,
        "seconds_a_step": 0.5,
        "peak_memory_mb": 900.0,
        "prior_evaluations": 3.0,
        "diverged": False,
        **{name: [recall, recall + 0.1] for name in compare_losses.SCORES},
    }
    return row | more


def test_the_table_averages_seeds_and_compares_prompt_by_prompt():
    chosen = compare_losses.settings(2.0, seeds=2)
    diverged = {**_run(0.0), "diverged": True}
    runs = {
        "sharp/asd/0": _run(0.5),
        "sharp/asd/1": _run(0.7),
        "sharp/sds/0": _run(0.4),
        "sharp/sds/1": diverged,
    }
    asd, sds = compare_losses.summarise(runs, chosen)
    assert (asd["seeds"], asd["diverged"], sds["diverged"]) == (2, 0, 1)
    assert asd["recall_at_1"] == pytest.approx(0.65)
    assert sds["recall_at_1"] == pytest.approx(0.45)
    assert sds["recall_at_1_minus_asd"] == pytest.approx([-0.2, -0.2, -0.2])
    assert "recall_at_1_minus_asd" not in asd


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_prompts():
    generator = torch.Generator().manual_seed(0)
    few, many = torch.randn(10, generator=generator), torch.randn(1000, generator=generator)
    narrow = compare_losses.paired(many, torch.zeros(1000))
    wide = compare_losses.paired(few, torch.zeros(10))
    for mean, low, high in (narrow, wide):
        assert low <= mean <= high
    assert narrow[2] - narrow[1] == pytest.approx(4 / 1000**0.5, rel=0.15)
    assert wide[2] - wide[1] > narrow[2] - narrow[1]


def test_every_run_has_a_folder_of_its_own_and_a_loss_that_exists(tmp_path: Path):
    jobs = compare_losses.jobs(compare_losses.settings(2.0, seeds=3))
    folders = [job.folder(tmp_path) for job in jobs]
    assert len(set(folders)) == len(folders) == len({job.key for job in jobs})
    main = [job for job in jobs if job.setting.name in ("asd", "sds", "csd", "vsd", "csd, matched")]
    assert len(main) == 5 * 3 * 2


@pytest.mark.parametrize(
    ("loss", "rows"), [("sds", 2.0), ("csd", 2.0), ("asd", 3.0), ("nfsd", 2.0)]
)
def test_prior_evaluations_are_counted(loss: str, rows: float):
    assert compare_losses.prior_evaluations(compare_losses.Setting("x", loss)) == rows


def test_the_prompts_are_known_to_every_edition():
    for prompt in (*prior_regimes.PROMPTS, *load_prompts(str(compare_losses.PROMPTS))):
        assert grammar.describe(grammar.parse(prompt)) == prompt


def test_matching_needs_the_other_runs():
    job = compare_losses.jobs(compare_losses.settings(2.0, 1))[0]
    with pytest.raises(ValueError, match="matched to asd, which has no finished run"):
        compare_losses._gradient({"runs": {}}, job, "asd")
    runs = {
        "sharp/asd/0": _run(0.5, gradient_rms=0.02),
        "sharp/asd/1": _run(0.5, gradient_rms=0.04),
    }
    assert compare_losses._gradient({"runs": runs}, job, "asd") == pytest.approx(0.03)
