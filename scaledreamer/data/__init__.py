"""Prompt corpora and the resumable loader."""
