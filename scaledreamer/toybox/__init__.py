"""ToyBox: the embedded world that mirrors the real stack and adds ground truth."""
