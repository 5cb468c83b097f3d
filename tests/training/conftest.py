"""A run small enough to train in a second: 8 px planes, 8 px renders, the exact-score prior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaledreamer.config import build
from scaledreamer.training.config import TrainConfig
from tests.encoders.folders import save_clip

PROMPTS = ("a red box", "a blue ball", "a green mug")


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_clip(folder)
    return folder


def tiny_values(folder: Path, encoder_folder: Path) -> dict[str, Any]:
    """A configuration as YAML would give it; its corpus is written beside its output."""
    corpus = folder / "prompts.txt"
    corpus.write_text("# three prompts\n\n" + "\n".join(PROMPTS) + "\n", encoding="utf-8")
    return {
        "prompts": str(corpus),
        "output": str(folder / "run"),
        "num_steps": 6,
        "prompts_per_step": 2,
        "views_per_prompt": 2,
        "render_px": 8,
        "num_points": 16,
        "encoder": str(encoder_folder),
        "generator": {
            "name": "hyper_triplane",
            "planes_px": 8,
            "grid_px": 4,
            "plane_channels": 4,
            "width": 32,
            "num_blocks": 1,
            "style_dim": 16,
            "seed_channels": 4,
            "up_channels": [16],
            "sdf_hidden": [8],
            "colour_hidden": [8],
            "hyper_rank": 8,
        },
        "prior": {"name": "gaussian_mixture", "texts": list(PROMPTS)},
        "distiller": {"name": "asd", "guidance_scale": 2.0},
        "render": {"num_stratified": 6, "num_importance": 3},
        "beta": {"start": 0.2, "end": 0.1, "from_step": 0, "to_step": 6},
        "losses": {
            "asd": 1.0,
            "eikonal": {"start": 0.5, "end": 0.1, "from_step": 0, "to_step": 6},
            "sparsity": 0.1,
            "opacity": 0.1,
        },
        "background": {"white_probability": 0.5},
        "optimizer": {"lr": 0.003, "warmup_steps": 2},
        "precision": "fp32",
        "checkpoints": {"every": 100},
        "log": {"every": 1, "image_every": 100, "image_px": 8, "use_tensorboard": False},
        "num_threads": 1,
    }


@pytest.fixture
def tiny(tmp_path: Path, encoder_folder: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        return build(TrainConfig, {**tiny_values(tmp_path, encoder_folder), **changes})

    return make
