"""Child of test_checkpoint: saves step 1, then hangs in the middle of saving step 2."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from scaledreamer.storage import FORMAT
from scaledreamer.training import checkpoint


def contents(step: int) -> checkpoint.Checkpoint:
    value = torch.full((64, 64), float(step))
    return checkpoint.Checkpoint(
        step=step,
        model={"weight": value},
        ema={"weight": value + 0.5},
        engine={"optimizer": {"weight/exp_avg": value, "weight/step": torch.tensor(float(step))}},
        config={"format": FORMAT, "kind": "generator"},
        state={"epoch": 0, "position": 8 * step, "seed": 0, "num_prompts": 100},
    )


def hang_at(name: str) -> None:
    def hang(function: Any) -> Any:
        def wrapped(path: Path, *arguments: Any) -> Any:
            if Path(path).name == name:
                print("saving", flush=True)
                time.sleep(600)
            return function(path, *arguments)

        return wrapped

    for function in ("save_tensors", "write_json", "atomic_write"):
        setattr(checkpoint, function, hang(getattr(checkpoint, function)))


if __name__ == "__main__":
    checkpoint.save(Path(sys.argv[1]), contents(1), keep_last=2)
    hang_at(sys.argv[2])
    checkpoint.save(Path(sys.argv[1]), contents(2), keep_last=2)
