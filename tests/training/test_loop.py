from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from rich.console import Console

from scaledreamer.config import Constant, Linear, load_config
from scaledreamer.data.corpus import load_prompts
from scaledreamer.training.config import CheckpointConfig, LogConfig, TrainConfig, cut_schedules
from scaledreamer.training.dry_run import BYTES_PER_PARAMETER, activation_bytes, dry_run
from scaledreamer.training.logging import RunLog, image_grid
from scaledreamer.training.loop import resume_command, train
from scaledreamer.training.setup import create_run

Tiny = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]


def test_the_run_folder_says_what_ran(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(
        tiny(num_steps=2, log={"every": 1, "image_every": 1, "image_px": 8}),
        checkpoints=CheckpointConfig(every=1, keep_last=1),
    )
    assert train(config, command=["python", "train_amortized.py", "seed=0"]) == 0
    run = Path(config.output)
    assert (run / "command.txt").read_text() == "python train_amortized.py seed=0\n"
    assert load_config(TrainConfig, run / "config.yaml", []) == config
    assert json.loads((run / "versions.json").read_text())["torch"] == torch.__version__
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert [line["prompts_seen"] for line in lines] == [2, 4]
    with Image.open(run / "images" / "step_00000002.png") as image:
        assert image.size == (4 * 8, 3 * 8)
    assert list((run / "tensorboard").glob("events.*"))
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == [
        "step_00000002"
    ]
    out = capsys.readouterr().out
    assert "step 2/2" in out
    assert "ETA" in out


def test_weights_and_order_are_the_seeds(tiny: Tiny) -> None:
    torch.manual_seed(123)
    weights = []
    for seed in (0, 0, 1):
        run = create_run(tiny(seed=seed), Accelerator(mixed_precision="no"))
        weights.append(run.generator.get_parameter("planes.weight").detach().clone())
        torch.rand(7)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_resume_command_replaces_what_started_the_run() -> None:
    words = ["python", "train.py", "--resume", "old run", "a=1", "--init-from=x", "--output", "o p"]
    assert resume_command(words) == "python train.py a=1 --output 'o p' --resume auto"


def log_to(folder: Path, first_step: int, is_terminal: bool = False) -> tuple[RunLog, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, width=160, force_terminal=is_terminal)
    return RunLog(folder, first_step, 6, 4, 2, use_tensorboard=False, console=console), text


def test_records_are_means_and_repeated_steps_replace_theirs(tmp_path: Path) -> None:
    log, text = log_to(tmp_path, 0)
    with log:
        for step in range(1, 6):
            log.record(step, {"loss": torch.tensor(float(step))})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["prompts_seen"]) for line in lines] == [
        (2, 1.5, 8),
        (4, 3.5, 16),
    ]
    assert "step 4/6  loss 3.5" in text.getvalue()

    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 5, "lo')
    log, _ = log_to(tmp_path, 2)
    with log:
        for step in range(3, 7):
            log.record(step, {"loss": torch.tensor(0.0)})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 1.5), (4, 0.0), (6, 0.0)]


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    log, text = log_to(tmp_path, 0, is_terminal=True)
    with log:
        for step in range(1, 7):
            log.record(step, {"loss": torch.tensor(0.25)})
    for part in ("6/6", "loss 0.25", "steps/s", "24 prompts", "ETA"):
        assert part in text.getvalue()


def test_grid_places_scenes_in_rows_and_views_in_columns() -> None:
    images = torch.arange(2 * 3 * 3 * 4 * 5).reshape(2, 3, 3, 4, 5).float()
    grid = image_grid(images)
    assert grid.shape == (3, 8, 15)
    for scene, view in np.ndindex(2, 3):
        part = grid[:, scene * 4 : scene * 4 + 4, view * 5 : view * 5 + 5]
        assert torch.equal(part, images[scene, view])


def test_schedules_that_end_too_late_are_found() -> None:
    config = TrainConfig(num_steps=5999)
    assert cut_schedules(config) == ["distiller.t_min", "distiller.t_max", "beta"]
    assert cut_schedules(replace(config, num_steps=6000)) == ["distiller.t_min", "distiller.t_max"]
    assert cut_schedules(TrainConfig(losses={"opacity": Linear(0.0, 1.0, 0, 12_001)})) == [
        "losses.opacity"
    ]


def test_dry_run_counts_and_states_its_formula(tiny: Tiny) -> None:
    config = tiny()
    run = create_run(config, Accelerator(mixed_precision="no"))
    count = sum(parameter.numel() for parameter in run.generator.parameters())
    text = dry_run(config)
    assert f"{count:,} trained" in text
    assert f"{BYTES_PER_PARAMETER * count / 2**20:,.1f} MiB" in text
    assert "hyper_triplane" in text
    assert not Path(config.output).exists()


def test_activation_estimate_predicts_a_larger_render(tiny: Tiny) -> None:
    from scaledreamer.training.dry_run import _saved_bytes

    config = tiny()
    run = create_run(config, Accelerator(mixed_precision="no"))
    estimate = activation_bytes(config, run.generator, run.encoder).of(1, 32**2)
    assert estimate == pytest.approx(_saved_bytes(config, run.generator, run.encoder, 32), rel=0.3)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load_and_name_every_choice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(TrainConfig, path, [])
    monkeypatch.chdir(ROOT)
    is_single = config.prompts.startswith("prompt:")
    assert len(load_prompts(config.prompts)) >= (1 if is_single else 8)
    text = path.read_text()
    for name in TrainConfig.__dataclass_fields__:
        assert f"\n{name}:" in text, f"{path.name} leaves {name} to the defaults"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 0}, "num_steps: got 0"),
        ({"num_threads": 0}, "num_threads: got 0"),
        ({"prompts_per_step": -1}, "prompts_per_step: got -1"),
        ({"beta": Constant(0.0)}, "beta: got 0"),
        ({"beta": Linear(0.1, -0.1, 0, 10)}, "beta: got -0.1"),
        ({"beta": Linear(float("nan"), 0.1, 0, 10)}, "beta: got nan"),
        ({"losses": {"eikonall": Constant(1.0)}}, "losses.eikonall: .* did you mean 'eikonal'"),
        ({"losses": {"zzz": Constant(1.0)}}, "known: asd, eikonal, opacity, sparsity"),
    ],
)
def test_bad_counts_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)
    with pytest.raises(ValueError, match=r"checkpoints\.every: got 0"):
        CheckpointConfig(every=0)
    with pytest.raises(ValueError, match=r"log\.image_px: got 0"):
        LogConfig(image_px=0)
