"""Tests of scaledreamer.priors."""
