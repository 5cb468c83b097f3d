"""Training with every family of priors, from folders in their real formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaledreamer.cli import train as command
from scaledreamer.config import build, to_yaml
from scaledreamer.storage import load_tensors, sha256_file
from scaledreamer.training import setup
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.dry_run import dry_run
from tests.priors import folders
from tests.training.conftest import tiny_values

CASES = [
    ("unet", folders.save_toybox, {}),
    ("unet", lambda root: folders.save_stable_diffusion(root, "epsilon"), {"use_view_words": True}),
    ("unet", lambda root: folders.save_stable_diffusion(root, "v_prediction"), {"chunk_size": 3}),
    ("unet", folders.save_sdxl, {"use_offload": True}),
    ("unet", folders.save_deepfloyd, {}),
    ("mvdream", lambda root: folders.save_mvdream(root, 2), {}),
    ("sd3", folders.save_sd3, {"t5_tokens": 20, "use_offload": True}),
    ("flux", folders.save_flux, {"t5_tokens": 20}),
    ("pixart", folders.save_pixart, {"t5_tokens": 20, "dtype": "bfloat16"}),
]


def _config(
    folder: Path, encoder: Path, name: str, save: Any, options: dict[str, Any]
) -> TrainConfig:
    save(folder / "prior")
    values = tiny_values(folder, encoder)
    values["prior"] = {"name": name, "folder": str(folder / "prior"), **options}
    values["num_steps"] = 2
    values["distiller"].update(t_per="scene", t_min=0.02, t_max=0.98)
    values["beta"] = 0.1
    values["losses"] = {"asd": 1.0}
    if name == "mvdream":
        values["cameras"] = {"share_views": True}
    return build(TrainConfig, values)


@pytest.mark.parametrize(("name", "save", "options"), CASES)
def test_two_steps(
    name: str,
    save: Any,
    options: dict[str, Any],
    tmp_path: Path,
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command trains the generator alone; of the prior nothing changes and nothing is saved."""
    torch.manual_seed(0)
    config = _config(tmp_path, encoder_folder, name, save, options)
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(config))
    files = sorted((tmp_path / "prior").rglob("*.*"))
    before = [sha256_file(path) for path in files]
    made: list[Any] = []
    create = setup.create_component

    def noting(package: str, *arguments: Any) -> Any:
        result = create(package, *arguments)
        if package == setup.PRIORS:
            weights = [*result._parts.network.parameters()]
            made.append((weights, [weight.clone() for weight in weights]))
        return result

    monkeypatch.setattr(setup, "create_component", noting)
    assert command.main(["--config", str(file)]) == 0
    ((weights, copies),) = made
    assert all(map(torch.equal, weights, copies))
    assert not any(weight.requires_grad or weight.grad is not None for weight in weights)
    assert [sha256_file(path) for path in files] == before
    records = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    assert len(records) == 2
    saved = Path(config.output) / "checkpoints" / "step_00000002"
    trained = load_tensors(saved / "model.safetensors")
    generator = setup.create_generator(config, setup.clip_text.load(config.encoder))
    names = {key.removeprefix("generator.") for key in trained}
    assert names == set(generator.state_dict())
    moved = [
        not torch.equal(trained.get(key, trained.get(f"generator.{key}")), value)  # type: ignore[arg-type]
        for key, value in generator.state_dict().items()
    ]
    assert any(moved)
    assert all(value.isfinite().all() for value in trained.values())


@pytest.mark.parametrize(("name", "save", "options"), [CASES[1], CASES[5], CASES[6], CASES[8]])
def test_a_dry_run_counts_the_prior_without_its_weights(
    name: str, save: Any, options: dict[str, Any], tmp_path: Path, encoder_folder: Path
) -> None:
    config = _config(tmp_path, encoder_folder, name, save, options)
    for path in (tmp_path / "prior").rglob("*.safetensors"):
        path.unlink()
    text = dry_run(config)
    assert "frozen (network)" in text
    assert "frozen (vae)" in text
    assert "GFLOP (12 rows" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views_per_prompt": 4}, "views_per_prompt: got 4; prior mvdream sees 2 views"),
        ({"cameras": {"azimuth_layout": "spread"}}, "set cameras.azimuth_layout=spread"),
        (
            {"cameras": {"azimuth_layout": "independent", "share_views": True}},
            "set cameras.azimuth_layout=spread",
        ),
        (
            {"distiller": {"name": "asd", "t_min": 0.02, "t_max": 0.98}},
            "distiller.t_per: got view; prior mvdream",
        ),
    ],
)
def test_a_prior_that_joins_views_needs_them_and_one_time(
    changes: dict[str, Any],
    message: str,
    tmp_path: Path,
    encoder_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = _config(tmp_path, encoder_folder, *CASES[5])
    values = {**tiny_values(tmp_path, encoder_folder), "num_steps": 2, "beta": 0.1}
    values["losses"] = {"asd": 1.0}
    values["prior"] = {"name": "mvdream", "folder": str(tmp_path / "prior")}
    values["cameras"] = {"share_views": True}
    values["distiller"] = {"name": "asd", "t_per": "scene", "t_min": 0.02, "t_max": 0.98}
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(build(TrainConfig, {**values, **changes})))
    for words in ([], ["--dry-run"]):
        assert command.main(["--config", str(file), *words]) == 2
        assert message in capsys.readouterr().err
    assert not Path(config.output).exists()
