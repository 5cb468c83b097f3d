"""The frozen text towers against transformers' own forward pass."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaledreamer.encoders import clip_text
from tests.encoders import folders

TEXTS = ["a red box", "A RED BOX", "a blue ball on top of a green mug", ""]


def test_full_clip_gives_states_and_projection(tmp_path: Path) -> None:
    model = folders.save_clip(tmp_path)
    encoder = clip_text.load(str(tmp_path))
    encoded = encoder(TEXTS)

    inputs = folders.word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    expected = model.text_model(**inputs)
    length = inputs["input_ids"].shape[1]
    keep = inputs["attention_mask"].bool()
    assert encoded.tokens.shape == (4, folders.MAX_TOKENS, folders.WIDTH)
    assert torch.equal(encoded.mask[:, :length], keep)
    assert not encoded.mask[:, length:].any()
    torch.testing.assert_close(
        encoded.tokens[:, :length][keep], expected.last_hidden_state[keep], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(encoded.pooled, model.text_projection(expected.pooler_output))
    assert torch.equal(encoded.tokens[0], encoded.tokens[1])
    assert (encoder.token_dim, encoder.pooled_dim) == (folders.WIDTH, folders.PROJECTION)


def test_pipeline_folder_with_projection(tmp_path: Path) -> None:
    model = folders.save_projected_tower(tmp_path)
    encoded = clip_text.load(str(tmp_path))(TEXTS)
    inputs = folders.word_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    torch.testing.assert_close(encoded.pooled, model(**inputs).text_embeds)


def test_stable_diffusion_folder_pads_like_its_pipeline(tmp_path: Path) -> None:
    model = folders.save_plain_tower(tmp_path)
    encoder = clip_text.load(str(tmp_path))
    encoded = encoder(["red", "a red ball"])
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ids = torch.tensor([[start, vocabulary["red</w>"], end] + [vocabulary["!"]] * 74])
    expected = model(input_ids=ids)
    torch.testing.assert_close(encoded.tokens[:1], expected.last_hidden_state)
    assert encoded.pooled is not None
    torch.testing.assert_close(encoded.pooled[:1], expected.last_hidden_state[:, 2])
    assert encoded.mask.sum(dim=1).tolist() == [3, 8]
    assert encoder.unknown_words("a zebra éé <|endoftext|>") == []


def test_frozen_float32_without_autograd_under_autocast(tmp_path: Path) -> None:
    folders.save_clip(tmp_path)
    encoder = clip_text.load(str(tmp_path))
    plain = encoder(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = encoder(TEXTS)
    assert torch.equal(encoded.tokens, plain.tokens)
    assert encoded.tokens.dtype == torch.float32
    assert not encoded.tokens.requires_grad


def test_long_prompt_warns_once_and_keeps_the_end_token(tmp_path: Path) -> None:
    folders.save_clip(tmp_path)
    encoder = clip_text.load(str(tmp_path))
    long = "a red box " * 8
    with pytest.warns(UserWarning, match=r"26 tokens.*takes 20.*a red box a red"):
        encoded = encoder([long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder([long, "a box"])
    fitting = encoder(["a red box " * 6])
    assert encoded.mask.all()
    assert torch.equal(encoded.tokens, fitting.tokens)
    torch.testing.assert_close(encoded.pooled, fitting.pooled, atol=0, rtol=0)


def test_unknown_words_are_named_once_in_order(tmp_path: Path) -> None:
    folders.save_clip(tmp_path)
    encoder = clip_text.load(str(tmp_path))
    assert encoder.unknown_words("A Zebra on a Red sofa, a Zebra") == ["Zebra", "sofa"]
    assert encoder.unknown_words("a red box") == []


def test_id_depends_on_weights_alone(tmp_path: Path) -> None:
    folders.save_clip(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    folders.save_clip(tmp_path / "other")
    ids = [clip_text.load(str(tmp_path / name)).encoder_id for name in ("one", "copy", "other")]
    assert ids[0] == ids[1] != ids[2]
    assert ids[0].startswith("clip-text:")
    assert len(ids[0]) == len("clip-text:") + 12


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", r"config\.json: missing"),
        ("model.safetensors", r"model\.safetensors: missing"),
        ("tokenizer_config.json", r"tokenizer_config\.json: missing"),
    ],
)
def test_missing_file_is_named(tmp_path: Path, broken: str, message: str) -> None:
    folders.save_clip(tmp_path)
    (tmp_path / broken).unlink()
    with pytest.raises(ValueError, match=message):
        clip_text.load(str(tmp_path))


def test_broken_and_incomplete_weights_are_errors(tmp_path: Path) -> None:
    folders.save_clip(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot load CLIPModel") as caught:
        clip_text.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    tensors.pop("text_projection.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, such as text_projection\.weight"):
        clip_text.load(str(tmp_path))


def test_end_token_mismatch_is_an_error(tmp_path: Path) -> None:
    folders.save_clip(tmp_path, eos_token_id=2)
    with pytest.raises(ValueError, match="ends texts with id 3"):
        clip_text.load(str(tmp_path))
