"""Training with a loss that trains something: its group, its checkpoint, several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from scaledreamer.cli import export
from scaledreamer.config import Component
from scaledreamer.data.corpus import load_prompts
from scaledreamer.data.loader import PromptLoader
from scaledreamer.storage import load_tensors
from scaledreamer.training.config import CheckpointConfig, TrainConfig
from scaledreamer.training.loop import train
from scaledreamer.training.setup import Run, create_run
from scaledreamer.training.step import clip_gradients, training_step
from tests.priors import folders
from tests.training import vsd_process
from tests.training.conftest import tiny_values

Tiny = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
VSD = {"name": "vsd", "guidance_scale": 2.0, "lora_lr": 0.01}
LOSSES = {"vsd": 1.0, "lora": 1.0, "eikonal": 0.5}


@pytest.fixture
def unet(tmp_path: Path) -> dict[str, Any]:
    """The prior section of a small random UNet with cameras."""
    folder = tmp_path / "prior"
    folder.mkdir()
    torch.manual_seed(1)
    folders.save_toybox(folder)
    return {"name": "unet", "folder": str(folder)}


def start(config: TrainConfig) -> tuple[Run, PromptLoader]:
    run = create_run(config, Accelerator(mixed_precision="no"))
    texts = load_prompts(config.prompts)
    return run, PromptLoader(texts, config.seed, config.prompts_per_step)


def clones(module: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_particles_of_repeated_prompts_train(tiny: Tiny, unet: dict[str, Any]) -> None:
    """Six scenes of three prompts, told apart by the generator's latent."""
    config = tiny(distiller=VSD, losses=LOSSES, prior=unet, prompts_per_step=6)
    fields = replace(config.generator.config, latent_dim=4)
    run, loader = start(replace(config, generator=Component("hyper_triplane", fields)))
    before, prior = clones(run.trainable), clones(run.prior._parts.network)  # type: ignore
    for step in range(3):
        batch = next(loader)
        assert len(set(batch.texts)) < len(batch.texts)
        scalars = training_step(run, batch, step)
        assert {"loss/vsd", "loss/lora", "gradient_norm", "gradient_norm/distiller"} <= {*scalars}
    still = [
        name for name, value in run.trainable.state_dict().items() if value.equal(before[name])
    ]
    assert not [name for name in still if name.startswith("distiller.")]
    assert all(value.equal(prior[n]) for n, value in clones(run.prior._parts.network).items())  # type: ignore
    assert not any("lora" in name for name in run.ema.module.state_dict())


def test_the_copy_has_a_rate_and_a_clipping_of_its_own(tiny: Tiny) -> None:
    run, loader = start(tiny(distiller=VSD, losses=LOSSES, num_steps=100))
    for step in range(2):
        scalars = training_step(run, next(loader), step)
        generator, lora = run.optimizer.param_groups
        assert generator["lr"] == pytest.approx(float(scalars["lr"]))
        assert lora["lr"] == 0.01
    assert generator["betas"] != lora["betas"]
    assert len(lora["params"]) == len(list(run.trainable.distiller.parameters()))  # type: ignore
    for parameter in run.trainable.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    clip_gradients(run.trainable, 1.0)
    for part in run.trainable.children():
        squares = [one.grad.square().sum() for one in part.parameters() if one.grad is not None]
        assert float(torch.stack(squares).sum()) == pytest.approx(1.0, rel=1e-4)


def test_the_seed_alone_gives_the_first_weights(tiny: Tiny) -> None:
    config = tiny(distiller=VSD, losses=LOSSES)
    first = clones(start(config)[0].trainable)
    torch.manual_seed(77)
    second = clones(start(config)[0].trainable)
    assert all(value.equal(second[name]) for name, value in first.items())


def test_save_and_resume_bit_for_bit(tiny: Tiny, unet: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(distiller=VSD, losses=LOSSES, prior=unet, num_steps=4)

    def at(name: str) -> TrainConfig:
        return replace(config, output=str(tmp_path / name), checkpoints=CheckpointConfig(every=2))

    def folder(name: str, step: int) -> Path:
        return tmp_path / name / "checkpoints" / f"step_{step:08d}"

    assert train(at("straight")) == 0
    assert train(at("resumed"), resume=str(folder("straight", 2))) == 0
    files = ["model", "ema", "engine/optimizer", "engine/distiller"]
    for file in files:
        pair = [folder(name, 4) / f"{file}.safetensors" for name in ("straight", "resumed")]
        assert pair[0].read_bytes() == pair[1].read_bytes(), file
    lora = load_tensors(folder("straight", 4) / "engine/distiller.safetensors")
    assert lora
    assert any(value.abs().max() > 0 for name, value in lora.items() if name.endswith(".up"))
    optimizer = load_tensors(folder("straight", 4) / "engine/optimizer.safetensors")
    assert {f"distiller.{name}/exp_avg" for name in lora} <= {*optimizer}
    shipped = tmp_path / "shipped"
    assert export.main([str(tmp_path / "straight"), str(shipped)]) == 0
    for file in (
        *(folder("straight", 4) / f"{one}.safetensors" for one in ("model", "ema")),
        shipped / "ema.safetensors",
    ):
        assert not any("lora" in name for name in load_tensors(file))
    wider = Component("vsd", replace(config.distiller.config, rank=8))
    with pytest.raises(ValueError, match="do not fit"):
        train(replace(at("other"), distiller=wider), resume=str(folder("straight", 2)))


def launch(config_file: Path, outputs: list[Path]) -> list[dict[str, Tensor]]:
    """Trains with as many processes as outputs."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(outputs)),
    }
    shared = {name: value for name, value in shared.items() if not name.startswith("ACCELERATE_")}
    if len(outputs) == 1:
        del shared["WORLD_SIZE"]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", vsd_process.__name__, str(config_file), str(output)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            if len(outputs) > 1
            else shared,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )
        for rank, output in enumerate(outputs)
    ]
    for child in children:
        said, _ = child.communicate(timeout=240)
        assert child.returncode == 0, said
    return [load_tensors(output) for output in outputs]


@pytest.mark.multi
def test_two_processes_train_the_copy_as_one_does(
    tmp_path: Path, encoder_folder: Path, unet: dict[str, Any]
) -> None:
    """Adam's eps is large, so that rounding does not turn the sign of an update."""
    values = tiny_values(tmp_path, encoder_folder)
    values.update(distiller=VSD, prior=unet, losses=LOSSES, num_steps=3)
    values["optimizer"] = {**values["optimizer"], "eps": 1e-3}
    files = {}
    for count, per_process in ((1, 4), (2, 2)):
        files[count] = tmp_path / f"config_{count}.json"
        files[count].write_text(json.dumps({**values, "prompts_per_step": per_process}))
    (alone,) = launch(files[1], [tmp_path / "alone.safetensors"])
    first, second = launch(files[2], [tmp_path / f"rank{rank}.safetensors" for rank in (0, 1)])
    names = [name for name in alone if name.startswith("distiller.")]
    assert names
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name in names:
        torch.testing.assert_close(first[name], alone[name], rtol=0, atol=1e-5)
    ups = torch.cat([alone[name].flatten() for name in names if name.endswith(".up")])
    assert ups.abs().mean() > 1e-4, "the copies moved by much more than the tolerance"
