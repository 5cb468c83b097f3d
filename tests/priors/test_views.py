"""View words by camera, hard and blended, and the negatives that go with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaledreamer.cameras import orbit, ring
from scaledreamer.interfaces import CameraBatch
from scaledreamer.priors import _views, unet
from tests.priors import folders


def cameras(*azimuths: float, elevation: float = 10.0) -> CameraBatch:
    return ring(1, azimuths, elevation)


def test_hard_classes_switch_at_their_thresholds():
    views = cameras(0, 29, 31, 90, 149, 151, 180, 329, 331, -400)
    names = [_views.CLASSES[i] for i in _views.hard(views, 30, 60).argmax(1)]
    assert names == [
        *("front", "front", "side", "side", "side", "back", "back", "side", "front", "side"),
    ]
    above = _views.hard(cameras(0, 180, elevation=61), 30, 60)
    assert above.argmax(1).tolist() == [3, 3]


def test_blending_is_linear_in_the_azimuth():
    weights = _views.blended(cameras(0, 45, 90, 120, 180, 270, 315), 60)
    expected = torch.tensor(
        [
            [1, 0, 0, 0],
            [0.5, 0.5, 0, 0],
            [0, 1, 0, 0],
            [0, 2 / 3, 1 / 3, 0],
            [0, 0, 1, 0],
            [0, 1, 0, 0],
            [0.5, 0.5, 0, 0],
        ]
    )
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
    assert _views.blended(cameras(45, elevation=70), 60).tolist() == [[0, 0, 0, 1]]


def test_negatives_weigh_as_in_scaledreamer():
    """Front, half way, side, half way, back; values from the published decays."""
    weights = _views.negative_weights(cameras(0, 45, 90, 180), 60)
    expected = torch.tensor([[0, -0.345, -0.787, -0.984], [-0.787, -0.345, 0, -0.197]])
    torch.testing.assert_close(weights, expected, atol=1e-3, rtol=0)
    left = _views.negative_weights(cameras(0, -45, -90, 180), 60)
    torch.testing.assert_close(left, weights)
    assert _views.negative_weights(cameras(0, 90, elevation=70), 60).abs().max() == 0


def test_a_text_is_encoded_once_per_class_and_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    folders.save_toybox(tmp_path)
    options = {"use_view_words": True, "blend_view_words": True, "use_perp_neg": True}
    prior = unet.create(unet.Config(folder=str(tmp_path), **options))  # type: ignore[arg-type]
    encode, seen = prior._parts.text.__call__, []
    monkeypatch.setattr(
        type(prior._parts.text),
        "__call__",
        lambda self, texts: (seen.append(list(texts)), encode(texts))[1],
    )
    views = ring(2, (0.0, 45.0, 90.0, 180.0), 10.0)
    condition = prior.condition(["a red box", "a blue ball"], views)
    (texts,) = seen
    assert len(texts) == 2 + 2 * 3
    ends = {
        text: encode([f"{t}, {text} view" for t in ("a red box", "a blue ball")])
        for text in ("front", "side", "back")
    }
    tokens = condition.positive.text.tokens
    length = min(tokens.shape[1], ends["front"].tokens.shape[1])
    for scene in range(2):
        front, side, back = (
            ends[name].tokens[scene, :length] for name in ("front", "side", "back")
        )
        rows = tokens[4 * scene : 4 * scene + 4, :length]
        torch.testing.assert_close(rows[0], front)
        torch.testing.assert_close(rows[1], (front + side) / 2)
        torch.testing.assert_close(rows[2], side)
        torch.testing.assert_close(rows[3], back)
        for k, wanted in enumerate((front, side)):
            negatives = condition.negatives[k].text.tokens[4 * scene : 4 * scene + 4, :length]
            torch.testing.assert_close(negatives, wanted.expand_as(negatives))
    weights = condition.negative_weights
    assert weights is not None
    torch.testing.assert_close(weights, _views.negative_weights(views, 32))


@pytest.mark.parametrize("name", ["blend_view_words", "use_perp_neg"])
def test_both_need_view_words(name: str):
    with pytest.raises(ValueError, match=rf"prior\.{name}: needs prior\.use_view_words=true"):
        unet.Config(**{name: True})  # type: ignore[arg-type]


def test_orbit_cameras_of_several_scenes_are_scene_major():
    azimuth = torch.tensor([[0.0, 180.0], [90.0, 0.0]])
    ten, three, forty = (torch.full((2, 2), v) for v in (10.0, 3.0, 40.0))
    views = orbit(azimuth, ten, three, forty)
    assert _views.hard(views, 45, 32).argmax(1).tolist() == [0, 2, 1, 0]
