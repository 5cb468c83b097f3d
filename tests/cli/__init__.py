"""Tests of scaledreamer.cli."""
