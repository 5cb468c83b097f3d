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


def save_projected_tower(root: Path) -> CLIPTextModelWithProjection:
    """The text part of a ToyBox pipeline folder."""
    model = CLIPTextModelWithProjection(CLIPTextConfig(**text_config())).eval()
    model.save_pretrained(root / "text_encoder")
    word_tokenizer().save_pretrained(root / "tokenizer")
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
