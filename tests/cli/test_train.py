from __future__ import annotations

import json
import os
import shlex
import shutil
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
    values = tiny_values(tmp_path, encoder)
    values["distiller"].update(t_min=0.02, t_max=0.98)
    OmegaConf.save(OmegaConf.create(values), path)
    return path


def test_overrides_and_output_reach_the_run(config_file: Path, tmp_path: Path) -> None:
    words = ["--config", str(config_file), "num_steps=6", "optimizer.lr=3e-4"]
    assert train.main([*words, "--output", str(tmp_path / "1 2")]) == 0
    values: Any = OmegaConf.load(tmp_path / "1 2" / "config.yaml")
    assert (values.num_steps, values.optimizer.lr) == (6, 3e-4)
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
        (["losses.eikonall=1"], "losses.eikonall: no such loss with distiller asd; did you mean"),
        (["beta=0"], "beta: got 0.0; must be positive"),
        (["beta.end=0"], "beta: got 0.0; must be positive"),
        (["background=null"], "background: got null, and this generator learns none"),
        (["generator.background=learned"], "background: the generator's learned one would go"),
        (["generator.name=tests.training.density"], "set losses.eikonal=0"),
        (["generator.num_blocks=0", "generator.plane_channels=-1"], "generator"),
        (["generator.style_dim=-4"], "generator"),
        (["--resum", "auto"], "unrecognized arguments: --resum"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    config_file: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--config", str(config_file), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (config_file.parent / "run").exists()


@pytest.mark.filterwarnings("always")
def test_a_schedule_that_ends_too_late_warns_once(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(config_file), "num_steps=2", "--dry-run"]
    assert train.main(words) == 0
    error = capsys.readouterr().err
    assert error == "warning: beta, losses.eikonal: end after the last step, 2; lower to_step\n"


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
    assert shutil.which(command[0]) == os.path.relpath(sys.executable, ROOT) or (
        command[0] == "python"
    )
    assert command[1:] == ["train_amortized.py", *words, "--resume", "auto"]
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
    assert " launch train_amortized.py" in recorded[1]
