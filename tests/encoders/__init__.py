"""Tests of scaledreamer.encoders."""
