"""Tests of scaledreamer.distillation."""
