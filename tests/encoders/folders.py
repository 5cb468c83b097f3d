"""Small random CLIP folders in the formats that users bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = (
    *("a", "red", "blue", "green", "box", "ball", "mug", "on", "top", "of", "with", ","),
    *("front", "side", "back", "overhead", "view"),
)
NUM_SPECIAL = 4
MAX_TOKENS = 20
WIDTH = 16
PROJECTION = 8


def word_tokenizer() -> PreTrainedTokenizerFast:
    special = ("<pad>", "<start>", "<unk>", "<end>")
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=MAX_TOKENS,
    )


def text_config(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": NUM_SPECIAL + len(WORDS),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "projection_dim": PROJECTION,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
        **changes,
    }


def save_clip(root: Path, **changes: Any) -> CLIPModel:
    """A full CLIP: model and tokenizer at the top of the folder."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = CLIPConfig(
        text_config=text_config(**changes), vision_config=vision, projection_dim=PROJECTION
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(root)
    word_tokenizer().save_pretrained(root)
    return model


def save_projected_tower(root: Path, number: str = "") -> CLIPTextModelWithProjection:
    """The text part of a ToyBox pipeline folder, or tower `number` ("_2") of a larger one."""
    model = CLIPTextModelWithProjection(CLIPTextConfig(**text_config())).eval()
    model.save_pretrained(root / f"text_encoder{number}")
    word_tokenizer().save_pretrained(root / f"tokenizer{number}")
    return model


T5_WIDTH = 24


def save_t5(root: Path, number: str = "", width: int = T5_WIDTH) -> T5EncoderModel:
    """A T5 as `text_encoder` + number, its tokenizer with pieces that spell out any word."""
    letters = [(f"\u2581{word}", -2.0) for word in WORDS]
    letters += [(letter, -5.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz,"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=[*special, *letters], extra_ids=0)
    config = T5Config(
        vocab_size=len(special) + len(letters),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config).eval()
    model.save_pretrained(root / f"text_encoder{number}")
    tokenizer.save_pretrained(root / f"tokenizer{number}")
    return model


def save_plain_tower(root: Path, width: int = WIDTH) -> CLIPTextModel:
    """The text part of a Stable Diffusion 2 folder: byte-level BPE files, old weight names.

    As published, the two tokenizer files disagree on the padding token; "!" (id 0) is the one used.
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    letters = ["!", *"abcdefghijklmnopqrstuvwxyz"]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", start, end]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    folder = root / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        name: {"content": content, **token}
        for name, content in (("bos_token", start), ("eos_token", end), ("unk_token", end))
    }
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": "!"}))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        "pad_token": end,
        **{name: {"__type": "AddedToken", **value} for name, value in special.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = text_config(
        vocab_size=len(symbols),
        hidden_size=width,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    model = CLIPTextModel(CLIPTextConfig(**config)).eval()
    model.save_pretrained(root / "text_encoder")
    path = root / "text_encoder" / "model.safetensors"
    tensors = {
        f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return model
