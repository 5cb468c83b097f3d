from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from scaledreamer.config import to_dict
from scaledreamer.encoders import clip_text
from scaledreamer.generators import hyper_triplane
from scaledreamer.pipeline import GeneratorFolder, Result, TextTo3D
from scaledreamer.storage import read_json, save_tensors, write_json
from tests.toy_generator import EMPTY_PROMPT, save_generator, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_generator(tmp_path)


def volumes(results: list[Result]) -> list[float | None]:
    return [None if result.mesh is None else result.mesh.volume for result in results]


def test_three_lines_from_prompt_to_file(folder: Path, tmp_path: Path) -> None:
    pipe = TextTo3D.from_pretrained(folder)
    result = next(pipe.generate("a red mug", resolution=32))
    result.save(tmp_path / "mug.glb")
    mesh = trimesh.load(tmp_path / "mug.glb", force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=2e-2)
    assert list(result.seconds) == ["encode", "generate", "surface", "colour"]
    assert result.counts["faces"] == len(mesh.faces)
    assert result.mesh is not None
    assert result.mesh.colours is not None
    assert np.allclose(result.mesh.colours, (result.mesh.vertices + 1) / 2, atol=1e-6)


def test_shipped_half_precision_weights_become_float32(folder: Path) -> None:
    generator = TextTo3D.from_pretrained(folder).generator
    assert {p.dtype for p in generator.parameters()} == {torch.float32}
    assert not generator.training


def test_step_and_run_folders_are_found(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoints"
    root.mkdir(parents=True)
    step = folder.rename(root / "step_00000003")
    (root / "latest").write_text("step_00000003\n")
    assert GeneratorFolder.find(str(root.parent)).path == step
    assert GeneratorFolder.find(str(step)).path == step
    newer = root / "step_00000004"
    shutil.copytree(step, newer)
    (root / "latest").write_text("step_00000004\n")
    assert GeneratorFolder.find(str(root.parent)).path == newer
    cut_weights(newer)
    with pytest.warns(UserWarning, match="step_00000004: ema.safetensors is damaged"):
        assert GeneratorFolder.find(str(root.parent)).path == step
    shutil.rmtree(newer)
    assert GeneratorFolder.find(str(root.parent)).path == step
    shutil.rmtree(step)
    with pytest.raises(ValueError, match=r"expected config\.json, or a run's checkpoints"):
        GeneratorFolder.find(str(root.parent))


def test_ema_goes_before_model_weights(folder: Path) -> None:
    save_tensors(folder / "model.safetensors", {"radius": torch.tensor(0.3)})
    assert GeneratorFolder.find(str(folder)).weights.name == "ema.safetensors"
    (folder / "ema.safetensors").unlink()
    (folder / "manifest.json").unlink()
    (result,) = TextTo3D.from_pretrained(folder).generate("a mug", resolution=32)
    assert result.mesh is not None
    assert result.mesh.volume == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=5e-2)


def cut_weights(folder: Path) -> None:
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def change(folder: Path, **values: Any) -> None:
    write_json(folder / "config.json", {**read_json(folder / "config.json"), **values})
    write_manifest(folder)


def other_shape(folder: Path) -> None:
    save_tensors(folder / "ema.safetensors", {"radius": torch.zeros(2)})
    write_manifest(folder)


def other_encoder(folder: Path) -> None:
    encoder = read_json(folder / "config.json")["encoder"]
    change(folder, encoder={**encoder, "id": "clip-text:another"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_weights, r"ema\.safetensors is damaged"),
        (lambda f: (f / "config.json").write_text("{}"), r"config\.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json does not list files"),
        (lambda f: (f / "config.json").unlink(), r"expected config\.json"),
        (lambda f: (f / "ema.safetensors").unlink(), "has none of ema.safetensors, model"),
        (lambda f: change(f, format=2), "format 2; expected a generator of format 1"),
        (lambda f: change(f, kind="prior"), "kind 'prior'"),
        (lambda f: change(f, encoder=None), "no 'encoder' section"),
        (lambda f: change(f, generator={"name": "hyper_triplan"}), "hyper_triplane"),
        (other_shape, r"does not fit its config\.json .*radius"),
        (other_encoder, "trained with text encoder clip-text:another, got clip-text:"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_folders_are_one_line_errors(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        TextTo3D.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_corrupt_weights_without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    cut_weights(folder)
    with pytest.raises(ValueError, match=r"ema\.safetensors: corrupt file"):
        TextTo3D.from_pretrained(folder)


def test_one_bad_prompt_does_not_end_a_batch(folder: Path) -> None:
    prompts = ["a red box", EMPTY_PROMPT, "  ", "a zebra"]
    results = list(TextTo3D.from_pretrained(folder).generate(prompts, resolution=16))
    assert [result.prompt for result in results] == prompts
    assert [result.mesh is None for result in results] == [False, True, True, False]
    assert "surface is empty" in str(results[1].error)
    assert "expected some words" in str(results[2].error)
    assert [list(result.unknown_words) for result in results] == [[], [], [], ["zebra"]]
    with pytest.raises(ValueError, match="no mesh of 'a red box on top"):
        results[1].save("never.glb")


def test_latents_depend_on_seed_and_prompt_alone(tmp_path: Path) -> None:
    pipe = TextTo3D.from_pretrained(save_generator(tmp_path, latent_dim=2))

    def centre(prompts: list[str], seed: int) -> float:
        mesh = list(pipe.generate(prompts, resolution=24, seed=seed))[-1].mesh
        assert mesh is not None
        return float(mesh.vertices[:, 0].mean())

    assert centre(["a red box"], 0) == centre(["a mug", "a red box"], 0)
    assert abs(centre(["a red box"], 0) - centre(["a red box"], 1)) > 1e-3
    assert abs(centre(["a red box"], 0) - centre(["a blue box"], 0)) > 1e-3


def test_call_gives_one_field_over_all_prompts(folder: Path) -> None:
    pipe = TextTo3D.from_pretrained(folder)
    assert pipe("a red mug").num_scenes == 1
    field = pipe(["a red mug", "a blue box"])
    assert field.num_scenes == 2
    assert field.geometry(torch.zeros(2, 1, 3)) == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="expected some words"):
        pipe("")


def test_resolution_is_checked_before_the_first_prompt(folder: Path) -> None:
    with pytest.raises(ValueError, match="resolution: got -3"):
        TextTo3D.from_pretrained(folder).generate("a mug", resolution=-3)


def test_hyper_triplane_folders_generate(folder: Path) -> None:
    encoder_folder = read_json(folder / "config.json")["encoder"]["folder"]
    encoder = clip_text.load(encoder_folder)
    config = hyper_triplane.Config()
    generator = hyper_triplane.create(config, encoder.token_dim, encoder.pooled_dim)
    save_tensors(folder / "ema.safetensors", generator.state_dict())
    change(folder, generator={"name": "hyper_triplane", **to_dict(config)})
    (result,) = TextTo3D.from_pretrained(folder).generate("a red mug", resolution=32)
    assert result.mesh is not None
    assert result.mesh.to_trimesh().is_watertight
    assert result.mesh.volume == pytest.approx(4 / 3 * math.pi * 0.55**3, rel=0.3)
