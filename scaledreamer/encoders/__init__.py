"""Frozen text encoders and image-text scorers."""
