"""Tests of scaledreamer.mesh."""
