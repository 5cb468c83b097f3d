"""Child of test_vsd: trains some steps in one process or as one of several, and keeps weights.

`python -m tests.training.vsd_process CONFIG.json OUTPUT.safetensors`, with torch's variables of a
process group where there are several. They talk by gloo.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from scaledreamer.config import build
from scaledreamer.data.corpus import load_prompts
from scaledreamer.data.loader import PromptLoader
from scaledreamer.storage import save_tensors
from scaledreamer.training.config import TrainConfig
from scaledreamer.training.setup import create_run
from scaledreamer.training.step import training_step


def main(config_file: Path, output: Path) -> None:
    config = build(TrainConfig, json.loads(config_file.read_text()))
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    run = create_run(config, accelerator)
    loader = PromptLoader(
        load_prompts(config.prompts),
        config.seed,
        config.prompts_per_step,
        accelerator.process_index,
        accelerator.num_processes,
    )
    for step in range(config.num_steps):
        training_step(run, next(loader), step)
    save_tensors(output, run.trainable.state_dict())
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
