"""Score-distillation losses on the Prior contract."""
