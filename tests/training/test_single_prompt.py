"""One prompt, one scene: training it, and refining what an amortized generator made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledreamer.cameras import ring
from scaledreamer.cli import export
from scaledreamer.config import component_names, load_config
from scaledreamer.pipeline import GeneratorFolder, TextTo3D
from scaledreamer.storage import load_tensors, read_json
from scaledreamer.training import loop
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.dry_run import dry_run
from scaledreamer.training.loop import train
from scaledreamer.training.setup import Run
from tests.training.conftest import PROMPTS

Tiny = Callable[..., TrainConfig]
SHIPPED = Path(__file__).parents[2] / "configs" / "toybox" / "single_prompt.yaml"
PROMPT = PROMPTS[0]
SCENE: dict[str, Any] = {
    "name": "triplane",
    "planes_px": 8,
    "plane_channels": 4,
    "sdf_hidden": [8],
    "colour_hidden": [8],
}


@pytest.fixture
def single(tiny: Tiny, tmp_path: Path) -> Tiny:
    def make(**changes: Any) -> TrainConfig:
        output = str(tmp_path / "scene")
        values = {"prompts": f"prompt:{PROMPT}", "generator": SCENE, "output": output}
        return tiny(**{**values, "num_steps": 3, "prompts_per_step": 1, **changes})

    return make


@pytest.fixture
def amortized(tiny: Tiny) -> str:
    """A run of a hypernetwork triplane."""
    config = tiny(num_steps=2)
    assert train(config) == 0
    return config.output


@pytest.fixture
def scene(amortized: str, tmp_path: Path) -> Path:
    """What that run makes of one prompt."""
    folder = tmp_path / "exported"
    assert export.main([amortized, str(folder), "--prompt", PROMPT]) == 0
    return folder


def _render(folder: str | Path, prompt: str = PROMPT) -> torch.Tensor:
    pipe = TextTo3D.from_pretrained(folder)
    return pipe.render([prompt], ring(1, (20.0, 200.0)), 16).rgb


def test_the_shipped_configuration_holds_one_prompt() -> None:
    config = load_config(TrainConfig, SHIPPED, [])
    assert config.generator.name == "triplane"
    assert config.prompts == "prompt:a red mug with a white handle"
    assert "trained" in dry_run(config)
    over = load_config(TrainConfig, SHIPPED, ["prompts=prompt:a blue ball", "beta=0.03"])
    assert over.prompts == "prompt:a blue ball"


@pytest.mark.parametrize("loss", component_names("scaledreamer.distillation"))
def test_every_loss_trains_a_scene(single: Tiny, loss: str) -> None:
    config = single(distiller={"name": loss}, losses={"eikonal": 0.1}, prompts_per_step=2)
    assert train(config) == 0
    before, after = (
        load_tensors(Path(config.output) / "checkpoints" / "step_00000003" / f"{name}.safetensors")
        for name in ("model", "ema")
    )
    assert before.keys() == after.keys()
    assert (before["planes"] - after["planes"]).abs().max() > 0
    assert torch.isfinite(_render(config.output)).all()


@pytest.mark.parametrize("check", [train, dry_run])
def test_several_prompts_are_refused_before_anything_is_written(
    single: Tiny, tiny: Tiny, check: Callable[[TrainConfig], Any]
) -> None:
    config = single(prompts=tiny().prompts)
    with pytest.raises(ValueError, match="holds 3; triplane holds one scene: give one prompt"):
        check(config)
    assert not Path(config.output).exists()


def test_an_exported_scene_renders_the_amortized_one(amortized: str, scene: Path) -> None:
    assert torch.equal(_render(scene), _render(amortized))
    assert not torch.equal(_render(amortized), _render(amortized, PROMPTS[1]))
    config, source = read_json(scene / "config.json"), GeneratorFolder.find(amortized).config
    assert config["generator"] == {
        **SCENE,
        **{key: source["generator"][key] for key in ("sdf_scale", "sphere_radius")},
        "density_kind": "sdf",
        "background": "none",
    }
    assert config["prompt"] == PROMPT
    assert (config["encoder"], config["rendering"]) == (source["encoder"], source["rendering"])
    assert {one.dtype for one in load_tensors(scene / "ema.safetensors").values()} == {
        torch.float32
    }
    assert (scene / "manifest.json").is_file()


def test_refinement_starts_from_the_exported_scene_and_changes_it(
    single: Tiny, amortized: str, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[torch.Tensor] = []
    run_steps = loop.run_steps

    def noting(run: Run, *arguments: Any) -> int:
        with torch.no_grad():
            pipe = TextTo3D(run.encoder, run.generator, beta=GeneratorFolder.find(amortized).beta)
            first.append(pipe.render([PROMPT], ring(1, (20.0, 200.0)), 16).rgb)
        return run_steps(run, *arguments)

    monkeypatch.setattr(loop, "run_steps", noting)
    config = single()
    assert train(config, init_from=str(scene)) == 0
    assert torch.equal(first[0], _render(amortized))
    start = load_tensors(scene / "ema.safetensors")
    end = load_tensors(Path(config.output) / "checkpoints/step_00000003/model.safetensors")
    assert start.keys() == end.keys()
    assert all(not torch.equal(start[name], end[name]) for name in start)


def test_refinement_needs_the_settings_of_the_scene(single: Tiny, scene: Path) -> None:
    for key, value in (("planes_px", 16), ("sphere_radius", 0.4)):
        config = single(generator={**SCENE, key: value})
        expected = read_json(scene / "config.json")["generator"][key]
        with pytest.raises(ValueError, match=rf"start from it with generator\.{key}={expected}$"):
            train(config, init_from=str(scene))
    other = replace(single(), encoder="toybox:clip")
    with pytest.raises(ValueError, match="was trained with"):
        train(other, init_from=str(scene))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "  "], "expected some words"),
        (["--prompt", "a red box", "--prompt", "a blue ball"], "got 2; a folder holds one scene"),
    ],
)
def test_wrong_prompts_write_nothing(
    amortized: str,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert export.main([amortized, str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_exported_scene_is_of_one_prompt(scene: Path) -> None:
    with pytest.raises(ValueError, match="one scene only"):
        TextTo3D.from_pretrained(scene)(list(PROMPTS))
