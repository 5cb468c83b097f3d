"""Tests of scaledreamer.rendering."""
