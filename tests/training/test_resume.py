from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scaledreamer.cli import export
from scaledreamer.config import Component
from scaledreamer.pipeline import TextTo3D
from scaledreamer.storage import load_tensors, read_json
from scaledreamer.training import checkpoint
from scaledreamer.training.config import CheckpointConfig, TrainConfig
from scaledreamer.training.loop import train
from tests.encoders.folders import save_clip

Tiny = Callable[..., TrainConfig]
FILES = ("model.safetensors", "ema.safetensors", "engine/optimizer.safetensors", "state.json")


def at(config: TrainConfig, output: Path, every: int = 100) -> TrainConfig:
    return replace(config, output=str(output), checkpoints=CheckpointConfig(every=every))


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def test_six_steps_equal_three_save_resume_three(tiny: Tiny, tmp_path: Path) -> None:
    """Weights, average, optimizer, schedules, loader and metrics, bit for bit."""
    straight, halves = tmp_path / "straight", tmp_path / "halves"
    assert train(at(tiny(), straight)) == 0
    assert train(at(tiny(), halves, every=3)) == 0
    second = tmp_path / "second"
    assert train(at(tiny(), second), resume=str(step_folder(halves, 3))) == 0
    for name in FILES:
        expected = (step_folder(straight, 6) / name).read_bytes()
        assert (step_folder(second, 6) / name).read_bytes() == expected, name

    drop = ("steps_per_s", "prompts_seen")
    lines = [
        [{k: v for k, v in line.items() if k not in drop} for line in metrics(run)]
        for run in (straight, second)
    ]
    assert lines[0][3:] == lines[1]


def metrics(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_bf16_resumes_exactly_too(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(num_steps=4, precision="bf16")
    train(at(config, tmp_path / "straight", every=2))
    train(at(config, tmp_path / "second"), resume=str(step_folder(tmp_path / "straight", 2)))
    for name in FILES:
        pair = [step_folder(tmp_path / run, 4) / name for run in ("straight", "second")]
        assert pair[0].read_bytes() == pair[1].read_bytes(), name


def test_resume_auto_starts_anew_goes_on_and_survives_damage(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = at(tiny(num_steps=4), run, every=2)
    assert train(config, resume="auto") == 0
    expected = (step_folder(run, 4) / "ema.safetensors").read_bytes()
    (step_folder(run, 4) / "model.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="trying the one before"):
        assert train(config, resume="auto") == 0
    assert (step_folder(run, 4) / "ema.safetensors").read_bytes() == expected
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
    assert len((run / "command.txt").read_text().splitlines()) == 2


def test_the_checkpoint_is_a_generator_the_pipeline_reads(
    tiny: Tiny, tmp_path: Path, encoder_folder: Path
) -> None:
    config = tiny(num_steps=2)
    train(config)
    folder = step_folder(Path(config.output), 2)
    values = read_json(folder / "config.json")
    assert values["format"] == 1
    assert values["kind"] == "generator"
    assert values["generator"]["planes_px"] == 8
    assert values["encoder"]["folder"] == str(encoder_folder)
    assert values["rendering"]["beta"] == pytest.approx(config.beta(2))
    assert values["train"]["optimizer"]["lr"] == config.optimizer.lr
    field = TextTo3D.from_pretrained(config.output)("a red box")
    distance = field.geometry(torch.tensor([[[0.0, 0.0, 0.0], [0.9, 0.9, 0.9]]]))
    assert distance[0, 0] < 0 < distance[0, 1]


def test_init_from_takes_the_average_and_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(at(tiny(num_steps=3), first))
    frozen = replace(tiny().optimizer, lr=1e-20)
    config = replace(at(tiny(num_steps=1, seed=5), second), optimizer=frozen)
    train(config, init_from=str(first))
    given = load_tensors(step_folder(first, 3) / "ema.safetensors")
    taken = load_tensors(step_folder(second, 1) / "model.safetensors")
    for name, value in given.items():
        torch.testing.assert_close(taken[name], value, rtol=0, atol=1e-7)
    state = read_json(step_folder(second, 1) / "state.json")
    assert (state["step"], state["position"], state["seed"]) == (1, 2, 5)


def test_an_exported_generator_gives_first_weights(tiny: Tiny, tmp_path: Path) -> None:
    first = at(tiny(num_steps=1), tmp_path / "first")
    train(first)
    assert export.main([first.output, str(tmp_path / "shipped"), "--dtype", "float32"]) == 0
    assert train(at(tiny(num_steps=1), tmp_path / "next"), init_from=str(tmp_path / "shipped")) == 0
    with pytest.raises(ValueError, match=r"does not list state\.json"):
        train(at(tiny(), tmp_path / "last"), resume=str(tmp_path / "shipped"))


def test_a_second_run_does_not_overwrite_the_first(tiny: Tiny) -> None:
    config = tiny(num_steps=1)
    train(config)
    with pytest.raises(ValueError, match="already holds a run; go on with --resume auto"):
        train(config)


def test_resume_refuses_what_does_not_fit(
    tiny: Tiny, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = tiny(num_steps=2)
    train(config)
    folder = str(checkpoint.find(config.output))
    wider = replace(config.generator.config, plane_channels=8)
    other_encoder = tmp_path_factory.mktemp("other")
    save_clip(other_encoder, num_hidden_layers=1)
    short = tmp_path / "short.txt"
    short.write_text("a red box\n")
    swapped = tmp_path / "swapped.txt"
    swapped.write_text("a blue ball\na red box\na green mug\n")
    cases = [
        (replace(config, num_steps=1), "num_steps: got 1"),
        (replace(config, seed=3), "seed was 0, now it is 3"),
        (replace(config, prompts=str(short)), "num_prompts was 3"),
        (replace(config, prompts=str(swapped)), "corpus was [0-9a-f]{32}, now it is"),
        (
            replace(config, generator=Component("hyper_triplane", wider)),
            "do not fit this generator",
        ),
        (
            replace(config, encoder=str(other_encoder)),
            "encoder: .* was trained with .* or delete it, or start anew with another output",
        ),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            train(changed, resume=folder)
    with pytest.raises(ValueError, match="expected a checkpoint or a run"):
        train(config, resume=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="no such folder"):
        train(replace(config, output=str(tmp_path / "new")), init_from=str(tmp_path / "missing"))
