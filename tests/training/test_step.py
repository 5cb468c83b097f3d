from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from scaledreamer.cameras import CameraDistribution
from scaledreamer.config import Component, Constant
from scaledreamer.data.corpus import load_prompts
from scaledreamer.data.loader import PromptLoader
from scaledreamer.interfaces import PromptBatch, Views
from scaledreamer.storage import read_json
from scaledreamer.training import loop
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.setup import Run, create_run
from scaledreamer.training.step import Forward, clip_gradient, together, training_step, weighted_sum

Tiny = Callable[..., TrainConfig]


def start(config: TrainConfig) -> tuple[Run, PromptBatch]:
    run = create_run(config, Accelerator(mixed_precision="no"))
    loader = PromptLoader(load_prompts(config.prompts), config.seed, config.prompts_per_step)
    return run, next(loader)


def test_one_update_uses_the_schedules_of_its_step(tiny: Tiny) -> None:
    config = tiny(num_steps=100)
    run, batch = start(config)
    before = {name: value.clone() for name, value in run.generator.state_dict().items()}
    scalars = training_step(run, batch, 3)
    assert any(not torch.equal(v, before[k]) for k, v in run.generator.state_dict().items())
    weights = {name: schedule(3) for name, schedule in config.losses.items()}
    total = sum(weight * float(scalars[f"loss/{name}"]) for name, weight in weights.items())
    assert float(scalars["loss"]) == pytest.approx(total, rel=1e-5)
    assert not any(value.requires_grad for value in scalars.values())


def test_draws_depend_on_the_sample_not_on_the_batch(tiny: Tiny) -> None:
    """What one process does with a batch of two, two processes do with one each."""
    config = tiny(losses={"eikonal": 0.0, "sparsity": 0.0, "opacity": 0.0})
    run, batch = start(config)
    both = float(training_step(run, batch, 0)["loss"])
    halves = []
    for row in range(2):
        run, _ = start(config)
        part = slice(row, row + 1)
        half = PromptBatch(batch.ids[part], batch.texts[part], batch.sample_index[part])
        halves.append(float(training_step(run, half, 0)["loss"]))
    assert both == pytest.approx(sum(halves) / 2, rel=1e-4)


def test_a_learned_background_and_a_latent_train(tiny: Tiny) -> None:
    config = tiny(background=None)
    fields = replace(config.generator.config, background="learned", latent_dim=4)
    run, batch = start(replace(config, generator=Component("hyper_triplane", fields)))
    training_step(run, batch, 0)
    gradients = {
        name: parameter.grad
        for name, parameter in run.generator.named_parameters()
        if name.startswith("sky.")
    }
    assert gradients
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients.values())


def test_bf16_stays_near_fp32(tiny: Tiny) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        run, batch = start(tiny(precision=precision))
        losses.append(float(training_step(run, batch, 0)["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_weights_must_name_losses(tiny: Tiny) -> None:
    one = torch.ones(())
    losses = {"asd": 2 * one, "sparsity": 3 * one}
    assert float(weighted_sum(losses, {"sparsity": 0.5, "opacity": 0.0})) == 3.5
    with pytest.raises(ValueError, match=r"losses\.sds: no such loss; this run has asd, eikonal"):
        weighted_sum(losses, {"sds": 1.0})


def test_clipping_scales_the_whole_gradient() -> None:
    module = nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert float(clip_gradient(module, None)) == 5.0
    assert float(module.bias.grad) == 4.0
    assert float(clip_gradient(module, 1.0)) == 5.0
    assert float(module.bias.grad) == pytest.approx(0.8, rel=1e-4)


def one_of_two(other: bool) -> Accelerator:
    """What Accelerate is to one process, where the other one reports `other`."""
    return MagicMock(
        spec=Accelerator,
        num_processes=2,
        device=torch.device("cpu"),
        gather=lambda mine: torch.cat((mine, torch.tensor([int(other)]))),
    )


def test_processes_leave_a_failed_forward_pass_together() -> None:
    def forward(loss: float) -> Forward:
        return Forward(MagicMock(spec=Views), {"asd": torch.tensor(loss)}, {})

    def broken() -> Forward:
        raise FloatingPointError("asd: gradients hold non-finite values")

    def attempt(other: bool, compute: Callable[[], Forward]) -> Forward:
        return together(one_of_two(other), compute)

    assert float(attempt(False, lambda: forward(2.0)).losses["asd"]) == 2.0
    for other in (False, True):
        with pytest.raises(FloatingPointError, match="asd: gradients"):
            attempt(other, broken)
        with pytest.raises(FloatingPointError, match="not finite: loss asd"):
            attempt(other, lambda: forward(float("nan")))
    with pytest.raises(FloatingPointError, match="other processes' records"):
        attempt(True, lambda: forward(2.0))


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_non_finite_values_stop_the_run_and_leave_a_record(
    tiny: Tiny, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(config: TrainConfig, accelerator: Accelerator) -> Run:
        run = create_run(config, accelerator)
        parameter = run.generator.get_parameter("planes.bias")
        if where == "weight":
            parameter.data[0] = float("nan")
        else:
            parameter.register_hook(lambda grad: grad * float("inf"))
        return run

    monkeypatch.setattr(loop, "create_run", poison)
    config = tiny()
    message = "non-finite" if where == "weight" else r"gradient generator\.planes\.bias"
    with pytest.raises(FloatingPointError, match=rf"step 0: .*{message}.*crash\.json"):
        loop.train(config)
    record: dict[str, Any] = read_json(Path(config.output) / "crash.json")
    assert record["step"] == 0
    assert record["sample_index"] == [0, 1]
    assert len(record["prompts"]) == 2
    assert not (Path(config.output) / "checkpoints").exists()


def test_a_non_finite_gradient_updates_nothing(tiny: Tiny) -> None:
    run, batch = start(tiny(losses={"asd": Constant(float("inf"))}))
    before = run.generator.get_parameter("planes.weight").clone()
    with pytest.raises(FloatingPointError, match="gradient generator"):
        training_step(run, batch, 0)
    assert torch.equal(run.generator.get_parameter("planes.weight"), before)


def test_cameras_outside_the_priors_warn_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from scaledreamer.priors.gaussian_mixture import GaussianMixturePrior

    known = CameraDistribution(elevation_deg=(0.0, 30.0))
    monkeypatch.setattr(GaussianMixturePrior, "cameras", known)
    with pytest.warns(UserWarning, match=r"elevation_deg \(-5\.0, 40\.0\) exceeds") as caught:
        loop.train(tiny(num_steps=2))
    assert len(caught) == 1
