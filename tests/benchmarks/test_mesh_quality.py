"""Areas and colours on balls whose shares are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh

from benchmarks import mesh_quality
from benchmarks.mesh_quality import colour_share, named_colours, vertex_areas
from scaledreamer.mesh.surface import Surface
from scaledreamer.toybox.world.grammar import PALETTE, parse
from tests.toy_generator import save_generator


def ball(height: float, above: str, below: str, light: float | np.ndarray = 1.0) -> Surface:
    """Unit radius; one colour above z = height, another below."""
    mesh = trimesh.creation.icosphere(subdivisions=4)
    is_above = mesh.vertices[:, 2:] > height
    colours = np.where(is_above, PALETTE[above], PALETTE[below]) * light
    return Surface(
        np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces), colours.clip(0, 1)
    )


def test_vertex_areas_add_up_and_are_a_third_of_the_faces_around() -> None:
    tetrahedron = Surface(
        np.array([(0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 3)], np.float32),
        np.array([(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]),
    )
    small = [1.0, 1.5, 3.0]
    slanted = np.sqrt(np.square(small).sum())  # de Gua's theorem
    areas = vertex_areas(tetrahedron)
    np.testing.assert_allclose(areas[0], sum(small) / 3)
    np.testing.assert_allclose(areas.sum(), sum(small) + slanted)
    surface = ball(0.0, "red", "blue")
    np.testing.assert_allclose(vertex_areas(surface).sum(), surface.to_trimesh().area, rtol=1e-5)


@pytest.mark.parametrize("height", [-0.3, 0.5, 0.96])
def test_a_cap_has_archimedes_share_of_the_ball(height: float) -> None:
    surface = ball(height, "red", "blue")
    cap = (1 - height) / 2
    assert colour_share(surface, PALETTE["red"], 20.0) == pytest.approx(cap, abs=0.02)
    assert colour_share(surface, PALETTE["blue"], 20.0) == pytest.approx(1 - cap, abs=0.02)
    assert colour_share(surface, PALETTE["green"], 20.0) == 0


def test_light_does_not_change_a_colour_but_darkness_does() -> None:
    count = len(trimesh.creation.icosphere(subdivisions=4).vertices)
    light = np.random.default_rng(0).uniform(0.5, 1.05, (count, 1))
    lit = colour_share(ball(0.0, "yellow", "blue", light), PALETTE["yellow"], 5.0)
    assert lit == colour_share(ball(0.0, "yellow", "blue"), PALETTE["yellow"], 5.0)
    assert colour_share(ball(0.0, "yellow", "blue", 0.2), PALETTE["yellow"], 5.0) == 0


def test_named_colours_are_the_prompts_once_each() -> None:
    assert named_colours(parse("a red mug")) == ["red"]
    assert named_colours(parse("a yellow duck wearing a blue hat")) == ["yellow", "blue"]
    assert named_colours(parse("a red box next to a green tree")) == ["green", "red"]


def test_report_on_a_known_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ball is closed and grey-rainbow; prompts of more than five words have no surface."""
    checkpoint = save_generator(tmp_path)
    path = tmp_path / "report.json"
    small = ("--count", "6", "--resolution", "16", "--device", "cpu", "--splits", "train")
    assert mesh_quality.main(["--checkpoint", str(checkpoint), *small, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    is_short = [len(row["prompt"].split()) <= 5 for row in report["prompts"]]
    assert len(is_short) == 6
    for name in ("meshes", "watertight", "outward"):
        assert report["share"][name] == pytest.approx(sum(is_short) / 6)
    covered = [
        row["colour_shares"] is not None and min(row["colour_shares"].values()) >= 0.02
        for row in report["prompts"]
    ]
    assert report["share"]["all_named_colours"] == pytest.approx(sum(covered) / 6)
    failing = {
        row["prompt"] for row, good in zip(report["prompts"], covered, strict=True) if not good
    }
    assert set(report["failures"]) == failing
    assert "all named colours" in capsys.readouterr().out


def test_user_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert mesh_quality.main(["--count", "0"]) == 2
    assert capsys.readouterr().err == "error: --count: got 0; at least 1\n"
