"""The paper's generators at their published sizes, on shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scaledreamer.config import component_module

PACKAGE = "scaledreamer.generators"
TOKEN_DIM = POOLED_DIM = 1024
"""Of Stable Diffusion 2.1's text tower."""
CASES: list[tuple[str, dict[str, Any], float]] = [
    (
        "hyper_ingp",
        {
            "num_levels": 16,
            "log2_table_size": 19,
            "base_resolution": 16,
            "finest_resolution": 4096,
            "background": "learned",
        },
        13.3e6,
    ),
    *(
        (
            "conv3d",
            {
                "channels": (512, 512, 512, 256 * m, 128 * m, 64 * m),
                "volume_channels": 32,
                "style_dim": 256,
                "latent_dim": 64,
                "hidden": 64,
                "background": "learned",
            },
            count,
        )
        for m, count in ((1, 88.7e6), (2, 144.8e6))
    ),
    (
        "triplane_transformer",
        {
            "grid_px": 32,
            "width": 768,
            "num_blocks": 12,
            "head_dim": 48,
            "plane_channels": 32,
            "hidden": (64, 64),
            "background": "learned",
        },
        120.6e6,
    ),
]


@pytest.mark.parametrize(("name", "fields", "count"), CASES)
def test_parameters_are_as_many_as_published(
    name: str, fields: dict[str, Any], count: float
) -> None:
    module = component_module(PACKAGE, name)
    with torch.device("meta"):
        generator = module.create(module.Config(**fields), TOKEN_DIM, POOLED_DIM)
    assert sum(p.numel() for p in generator.parameters()) == pytest.approx(count, rel=0.002)
