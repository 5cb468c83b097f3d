"""The training system: step, loop, checkpoints, logging."""
