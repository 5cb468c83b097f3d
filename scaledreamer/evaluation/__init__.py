"""Judging by a second CLIP, scores against ground truth, reports."""
