"""Trains a generator over many prompts; `python train_amortized.py --help` lists the options.

Several processes or GPUs: `accelerate launch train_amortized.py ...`.
"""

from __future__ import annotations

import sys

from scaledreamer.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
