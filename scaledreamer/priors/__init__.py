"""Frozen 2D diffusion models, each behind the Prior contract."""
