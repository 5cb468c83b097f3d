"""Tests of scaledreamer.data."""
