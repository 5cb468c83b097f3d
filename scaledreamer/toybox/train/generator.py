"""Ships the averaged weights of a training run as the package's generator, with a card.

accelerate launch train_amortized.py --config configs/toybox/amortized.yaml
python -m scaledreamer.toybox.train.generator runs/amortized
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaledreamer.data.corpus import load_prompts
from scaledreamer.pipeline import GeneratorFolder
from scaledreamer.storage import atomic_folder, resolve_folder, sha256_file
from scaledreamer.toybox.train._run import earlier, last_metrics, write_card
from scaledreamer.toybox.train._sheets import generator_sheet


def facts_of(found: GeneratorFolder) -> dict[str, Any]:
    """What a checkpoint's configuration says of how its weights came about."""
    train, step = found.config["train"], int(found.config["step"])
    names = ("prompts", "prompts_per_step", "views_per_prompt", "prior", "distiller", "seed")
    facts = {"steps": step, **{name.replace("_", " "): train[name] for name in names}}
    if str(train["prompts"]).startswith("toybox:"):
        corpus = load_prompts(train["prompts"])
        facts["visits of each prompt"] = round(step * train["prompts_per_step"] / len(corpus), 2)
    return facts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ship a run's generator with the package.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--init", type=Path, help="generator folder that --init-from named")
    parser.add_argument("--output", type=Path, help="default: the package's weights folder")
    arguments = parser.parse_args(argv)
    found = GeneratorFolder.find(str(arguments.run))
    facts = {**facts_of(found), "initial weights": earlier(arguments.init)}
    if (arguments.run / "metrics.jsonl").is_file():
        facts["last record"] = last_metrics(arguments.run)
    with atomic_folder(arguments.output or resolve_folder("toybox:generator")) as folder:
        found.export(folder)
        facts["sha256 of weights"] = sha256_file(folder / "ema.safetensors")
        write_card(folder, "ToyBox generator", facts, generator_sheet(str(folder)))


if __name__ == "__main__":
    main()
