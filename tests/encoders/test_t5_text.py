"""The frozen T5 encoders against transformers' own, and their tokenizers' two file formats."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from scaledreamer.encoders import _pretrained, t5_text
from tests.encoders import folders

TEXTS = ["a red box", "a blue ball on top of a green mug"]


def _load(root: Path, max_tokens: int = 12, **options: Any) -> t5_text.T5TextEncoder:
    options = {"use_mask": True, **options}
    return t5_text.load_part(root / "text_encoder", root / "tokenizer", max_tokens, **options)


@pytest.mark.parametrize("use_mask", [True, False])
def test_states_are_those_of_transformers(use_mask: bool, tmp_path: Path) -> None:
    model = folders.save_t5(tmp_path)
    encoder = _load(tmp_path, use_mask=use_mask)
    encoded = encoder(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    batch = tokenizer(TEXTS, padding="max_length", max_length=12, return_tensors="pt")
    mask = batch["attention_mask"] if use_mask else None
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    torch.testing.assert_close(encoded.tokens, expected)
    assert torch.equal(encoded.mask, batch["attention_mask"].bool())
    assert encoded.pooled is None
    assert (encoder.token_dim, encoder.pooled_dim) == (folders.T5_WIDTH, None)
    assert encoder.unknown_words("a zebra") == []


def test_long_texts_warn_once_and_keep_the_end(tmp_path: Path) -> None:
    folders.save_t5(tmp_path)
    encoder = _load(tmp_path, max_tokens=6)
    long = "a red box on top of a green mug"
    with pytest.warns(UserWarning, match=r"prompt has 10 tokens, the text encoder takes 6"):
        encoded = encoder([long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder([long, "a red box"])
    assert encoded.mask.all()
    torch.testing.assert_close(encoded.tokens, encoder(["a red box on top"]).tokens)


def test_low_precision_weights_give_float32_states(tmp_path: Path) -> None:
    folders.save_t5(tmp_path)
    exact = _load(tmp_path)(TEXTS).tokens
    found = _load(tmp_path, dtype=torch.bfloat16)(TEXTS).tokens
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0.1)


def test_a_sentencepiece_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DeepFloyd IF and PixArt ship it: spiece.model and no tokenizer.json."""
    import sentencepiece

    words = " ".join(folders.WORDS).replace(",", "")
    lines = [" ".join(words.split()[first:]) for first in range(10)] * 30
    train: Any = sentencepiece.SentencePieceTrainer.train
    train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": []}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = _pretrained.load_tokenizer(tmp_path)
    ids = tokenizer("a red box")["input_ids"]
    assert ids[-1] == 1
    assert 2 not in ids
    monkeypatch.setattr(_pretrained, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs scaledreamer\[t5\]"):
        _pretrained.load_tokenizer(tmp_path)
