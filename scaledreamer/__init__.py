"""Prompt-amortized text-to-3D generators, trained by score distillation without 3D data."""

from __future__ import annotations

__version__ = "0.1.0"
