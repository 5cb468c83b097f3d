from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from scaledreamer.cli import train
from tests.encoders.folders import save_clip
from tests.training.conftest import tiny_values

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "train_amortized.py"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    encoder = tmp_path / "clip"
    encoder.mkdir()
    torch.manual_seed(0)
    save_clip(encoder)
    path = tmp_path / "tiny.yaml"
    OmegaConf.save(OmegaConf.create(tiny_values(tmp_path, encoder)), path)
    return path


def test_overrides_and_output_reach_the_run(config_file: Path, tmp_path: Path) -> None:
    words = ["--config", str(config_file), "num_steps=1", "optimizer.lr=3e-4"]
    assert train.main([*words, "--output", str(tmp_path / "1 2")]) == 0
    values: Any = OmegaConf.load(tmp_path / "1 2" / "config.yaml")
    assert (values.num_steps, values.optimizer.lr) == (1, 3e-4)
    recorded = shlex.split((tmp_path / "1 2" / "command.txt").read_text())
    assert recorded[-6:] == [*words, "--output", str(tmp_path / "1 2")]


def test_dry_run_prints_and_writes_nothing(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--config", str(config_file), "--dry-run", "seed=7"]) == 0
    out = capsys.readouterr().out
    assert "seed: 7" in out
    assert "trained" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimiser.lr=1"], "did you mean 'optimizer'"),
        (["generator.planes=8"], "generator.planes: unknown key"),
        (["num_steps=many"], "num_steps: got 'many'"),
        (["prompts=missing.txt"], "missing.txt"),
        (["--output", "/proc/run"], "cannot write /proc/run"),
        (["--resume", "missing"], "expected a checkpoint or a run"),
        (["--resume", "auto", "--init-from", "x"], "not allowed with"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["prior.name=unet", "prior.folder=missing"], "no such folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    config_file: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--config", str(config_file), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.multi
def test_ctrl_c_saves_and_the_printed_command_goes_on(config_file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    words = ["--config", str(config_file), "num_steps=150", "log.image_every=1000"]
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        lines = []
        for line in child.stdout:
            lines.append(line)
            if line.startswith("step 3/"):
                child.send_signal(signal.SIGINT)
    assert child.returncode == 130, "".join(lines)
    assert lines[-2] == "stopped; go on with:\n"
    command = shlex.split(lines[-1])
    assert command == ["python", "train_amortized.py", *words, "--resume", "auto"]
    saved = (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    stopped_at = int(saved[5:])
    assert 3 <= stopped_at < 150

    goal = stopped_at + 2
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    done = subprocess.run(
        [*launch, *command[1:], f"num_steps={goal}"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, goal + 1))
    recorded = (tmp_path / "run" / "command.txt").read_text().splitlines()
    assert recorded[1].startswith("accelerate launch train_amortized.py")
