"""Tests of scaledreamer.training."""
