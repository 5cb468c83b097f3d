"""Costs counted on shapes, against counting by hand and against real tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scaledreamer.config import load_config
from scaledreamer.priors import unet
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.estimate import measure, prior_cost, rows_per_latent
from tests.priors import folders

QUICKSTART = Path(__file__).parents[2] / "configs" / "toybox" / "quickstart.yaml"


def test_flops_and_bytes_of_two_layers() -> None:
    with torch.device("meta"):
        first, last = nn.Linear(8, 32), nn.Linear(32, 4)
        x = torch.zeros(10, 8)
    cost = measure(lambda: last(first(x).relu()))
    assert cost.flops == 2 * 10 * (8 * 32 + 32 * 4)
    # relu's input and output live at once, then its output and the result
    assert cost.peak_bytes == 4 * 10 * (32 + 32)
    kept = 10 * 8 + 10 * 32  # the input of each layer; relu keeps its output, the second's input
    assert cost.saved_bytes == 4 * kept
    with torch.no_grad():
        assert measure(lambda: last(first(x).relu())).saved_bytes == 0


def test_attention_counts_as_fused() -> None:
    query = torch.zeros(2, 3, 50, 8, device="meta")
    key = torch.zeros(2, 3, 70, 8, device="meta")
    cost = measure(lambda: F.scaled_dot_product_attention(query, key, key))
    assert cost.flops == 2 * 2 * 3 * 50 * 70 * (8 + 8)
    assert cost.peak_bytes == query.nbytes
    query.requires_grad_()
    key.requires_grad_()
    attended: list[torch.Tensor] = []
    measure(lambda: attended.append(F.scaled_dot_product_attention(query, key, key)))
    found = torch.autograd.grad(attended[0].sum(), (query, key))
    assert [one.shape for one in found] == [query.shape, key.shape]


def test_a_prior_s_flops_are_those_of_a_real_pass(tmp_path: Path) -> None:
    folders.save_stable_diffusion(tmp_path, "epsilon")
    options = [f"prior.folder={tmp_path}", "prior.autocast=false", "prompts_per_step=3"]
    config = load_config(TrainConfig, QUICKSTART, [*options, "prior.use_cameras=false"])
    cost = prior_cost(config, unet.create(config.prior.config, "meta"))
    assert (cost.num_images, cost.rows) == (6, 18)
    prior = unet.create(config.prior.config)
    prior._parts.network.set_attn_processor(AttnProcessor())  # fused, the counter can't see it
    x_t = torch.randn(18, *prior.latent_shape)
    with FlopCounterMode(display=False) as counter:
        prior.predict_noise(x_t, torch.full((18,), 0.5), prior.blank_rows(18))
    assert cost.predict_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    network = prior._parts.network
    assert cost.parameters["network"] == sum(weight.numel() for weight in network.parameters())
    assert cost.encode.saved_bytes > 0


@pytest.mark.parametrize(
    ("loss", "calls", "trained"),
    [
        ("sds", [2], []),
        ("csd", [2], []),
        ("asd", [3], []),
        ("nfsd", [2], []),
        ("vsd", [2, 1], [1]),
    ],
)
def test_rows_are_counted_by_asking_the_loss(
    loss: str, calls: list[int], trained: list[int]
) -> None:
    name = f"distiller.name={loss}"
    config = load_config(TrainConfig, QUICKSTART, [name])
    assert rows_per_latent(config) == (calls, trained)
    words = ["prior.use_view_words=true", "prior.use_perp_neg=true", "prior.bad_prompt=blurry"]
    config = load_config(TrainConfig, QUICKSTART, [name, *words])
    has_bad = loss == "nfsd"
    assert rows_per_latent(config) == ([calls[0] + 2 + has_bad, *calls[1:]], trained)


def test_a_lora_copy_keeps_what_its_backward_pass_needs() -> None:
    config = load_config(TrainConfig, QUICKSTART, ["distiller.name=vsd"])
    cost = prior_cost(config, unet.create(config.prior.config, "meta"))
    plain = load_config(TrainConfig, QUICKSTART, ["distiller.name=sds"])
    other = prior_cost(plain, unet.create(plain.prior.config, "meta"))
    assert cost.lora.saved_bytes > 5 * other.predict.peak_bytes / 16
    assert cost.peak_bytes > other.peak_bytes
    assert cost.lora.flops == pytest.approx(other.predict.flops / 2, rel=0.1)  # 8 of 16 rows


def test_offloaded_parts_are_counted_on_the_cpu(tmp_path: Path) -> None:
    folders.save_stable_diffusion(tmp_path, "epsilon")
    costs = []
    for use_offload in ("false", "true"):
        words = [f"prior.folder={tmp_path}", f"prior.use_offload={use_offload}"]
        config = load_config(TrainConfig, QUICKSTART, [*words, "prior.autocast=false"])
        costs.append(prior_cost(config, unet.create(config.prior.config, "meta")))
    assert costs[0].idle_bytes == 0
    assert costs[1].idle_bytes > 0
    assert costs[1].weight_bytes + costs[1].idle_bytes == costs[0].weight_bytes
