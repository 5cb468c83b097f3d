"""Trains an embedded CLIP contrastively; exchanged words and wrong view words are hard negatives.

python -m scaledreamer.toybox.train.clip --role clip     conditions the prior and the generator
python -m scaledreamer.toybox.train.clip --role judge    judges; other seed, conditions nothing

Source: Radford et al., "Learning transferable visual models from natural language supervision",
2021; negatives by word order after Yuksekgonul et al., "When and why vision-language models behave
like bags-of-words", ICLR 2023.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from scaledreamer.storage import (
    atomic_folder,
    cache_folder,
    load_tensors,
    resolve_folder,
    sha256_file,
    write_json,
)
from scaledreamer.toybox.train._run import Run, earlier, last_metrics, write_card
from scaledreamer.toybox.train._sheets import judge_sheet
from scaledreamer.toybox.train.dataset import Images
from scaledreamer.toybox.world import grammar

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>")
MAX_TOKENS = 20
MEAN, STD = 0.5, 0.5
"""Images enter the network as (x - MEAN) / STD."""
ROLES = {
    "clip": {"seed": 1, "width": 160, "layers": 5, "patch": 8, "steps": 1200},
    "judge": {"seed": 2, "width": 192, "layers": 6, "patch": 4, "steps": 1500},
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level, lower-casing; every word of the grammar is one token."""
    words = {"a", "an", "with", "wearing", "hat", ","}
    for phrase in (*grammar.RELATIONS, *grammar.VIEW_WORDS):
        words.update(phrase.split())
    words.update(grammar.COLOURS, grammar.KIND_NAMES, grammar.PARTS.values())
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<start>",
        eos_token="<end>",
        model_max_length=MAX_TOKENS,
    )


def build_model(vocab_size: int, width: int, layers: int, patch: int) -> CLIPModel:
    config = CLIPConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TOKENS,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "projection_dim": 128,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "image_size": 32,
            "patch_size": patch,
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    # on a CPU the backward pass of fused attention costs several times that of the plain one
    return CLIPModel._from_config(config, attn_implementation="eager")


@lru_cache(maxsize=1 << 16)
def _swaps(prompt: str) -> tuple[list[str], list[str]]:
    fixed = grammar.exchanged(grammar.parse(prompt))
    return fixed, [text for text in grammar.hard_swaps(prompt) if text not in fixed]


def negatives(prompt: str, count: int, seed: int) -> list[str]:
    """Exchanged colours or relation first, then other kinds for all but one, then one word off.

    Kinds are what a judge confuses: of 130 misjudged views of neighbours, 111 were a wrong kind.
    """
    fixed, rest = _swaps(prompt)
    rng = random.Random(seed)
    chosen = fixed[:1] if count > 1 else []
    chosen += grammar.other_kinds(prompt, count - len(chosen) - 1, rng)
    others = [text for text in (*fixed, *rng.sample(rest, len(rest))) if text not in chosen]
    return (chosen + others)[:count]


def wrong_captions(prompt: str, text: str, count: int, seed: int) -> list[str]:
    """Near misses of a caption; where it ends in view words, one has others instead."""
    ending = text[len(prompt) :]
    wrong = [near + ending for near in negatives(prompt, count, seed)]
    if ending:
        others = [f", {words}" for words in grammar.VIEW_WORDS if f", {words}" != ending]
        wrong[-1] = text[: len(prompt)] + random.Random(seed).choice(others)
    return wrong


class Contrast(nn.Module):
    """Symmetric InfoNCE; each image also meets `num_negatives` near misses of its text."""

    def __init__(
        self, model: CLIPModel, tokenizer: PreTrainedTokenizerFast, num_negatives: int = 5
    ):
        super().__init__()
        self.model, self.tokenizer, self.num_negatives = model, tokenizer, num_negatives

    def text(self, texts: Sequence[str]) -> Tensor:
        batch = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        out = self.model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        return F.normalize(self.model.text_projection(out.pooler_output).float(), dim=-1)

    def image(self, pixels: Tensor) -> Tensor:
        out = self.model.vision_model(pixel_values=(pixels - MEAN) / STD)
        return F.normalize(self.model.visual_projection(out.pooler_output).float(), dim=-1)

    def forward(self, pixels: Tensor, texts: list[str], wrong: list[str]) -> dict[str, Tensor]:
        with torch.autocast(pixels.device.type, torch.bfloat16):
            images, encoded = self.image(pixels), self.text(texts + wrong)
        right, misses = encoded.split((len(texts), len(wrong)))
        scale = self.model.logit_scale.exp().clamp(max=100)
        logits = scale * images @ right.T
        near = scale * torch.einsum(
            "nf,nkf->nk", images, misses.view(len(texts), -1, misses.shape[-1])
        )
        target = torch.arange(len(texts))
        full = torch.cat((logits, near), dim=1)
        loss = (F.cross_entropy(full, target) + F.cross_entropy(logits.T, target)) / 2
        return {"loss": loss, "accuracy": (full.argmax(1) == target).float().mean()}


def start_from(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Loads a folder's weights; words its vocabulary lacks keep their random embeddings."""
    weights = {n: w.float() for n, w in load_tensors(folder / "model.safetensors").items()}
    name = "text_model.embeddings.token_embedding.weight"
    known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    rows = model.state_dict()[name].clone()
    for word, row in tokenizer.get_vocab().items():
        if word in known:
            rows[row] = weights[name][known[word]]
    model.load_state_dict({**weights, name: rows})


def train(
    role: str,
    images: Images,
    folder: Path,
    steps: int,
    batch: int,
    learning_rate: float = 1e-3,
    init: Path | None = None,
) -> CLIPModel:
    """Trains from random weights, or from those of the folder `init`, matched word by word."""
    options = ROLES[role]
    torch.manual_seed(options["seed"])
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), options["width"], options["layers"], options["patch"])
    if init is not None:
        start_from(init, model, tokenizer)
    contrast = Contrast(model, tokenizer)
    run = Run(
        folder=folder,
        module=contrast,
        num_steps=steps,
        learning_rate=learning_rate,
        seed=options["seed"],
    )

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(len(images), (batch,), generator=generator)
        texts = images.captions(rows, generator)
        wrong = [
            caption
            for number, (row, text) in enumerate(zip(rows.tolist(), texts, strict=True))
            for caption in wrong_captions(
                images.prompts[row], text, contrast.num_negatives, index * batch + number
            )
        ]
        return contrast(images.on_background(rows, generator), texts, wrong)

    run.train(step)
    run.use_ema()
    return model


def save(model: CLIPModel, role: str, folder: Path, facts: dict[str, object]) -> None:
    """fp16 weights, tokenizer and card in transformers' layout; replaces the folder as a whole."""
    with atomic_folder(folder) as made:
        model.half().save_pretrained(made, safe_serialization=True)
        build_tokenizer().save_pretrained(made)
        scaling = {"image_mean": [MEAN] * 3, "image_std": [STD] * 3}
        write_json(made / "preprocessor_config.json", scaling)
        facts = {**facts, "sha256 of weights": sha256_file(made / "model.safetensors")}
        write_card(made, f"ToyBox CLIP ({role})", facts, judge_sheet(str(made)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train an embedded CLIP.")
    parser.add_argument("--role", choices=tuple(ROLES), required=True)
    parser.add_argument("--images", type=Path, default=cache_folder("toybox/images"))
    parser.add_argument("--state", type=Path, default=cache_folder("toybox"))
    parser.add_argument("--output", type=Path, help="default: the package's weights folder")
    parser.add_argument("--init", type=Path, help="start from this folder's weights")
    parser.add_argument("--steps", type=int, help="default: the role's own")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    images = Images.load(arguments.images)
    role, state = arguments.role, arguments.state / arguments.role
    steps = arguments.steps or ROLES[role]["steps"]
    rate = arguments.learning_rate
    initial, output = earlier(arguments.init), arguments.output or resolve_folder(f"toybox:{role}")
    model = train(role, images, state, steps, arguments.batch, rate, arguments.init)
    facts = {
        "images": len(images),
        "steps": steps,
        "initial weights": initial,
        "batch": arguments.batch,
        "learning rate": rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": ROLES[role]["seed"],
        "running means at the end": last_metrics(state),
    }
    save(model, role, output, facts)


if __name__ == "__main__":
    main()
