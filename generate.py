"""Prompts to meshes: `python generate.py --prompt "a red mug with a white handle"`."""

from __future__ import annotations

from scaledreamer.cli.generate import main

if __name__ == "__main__":
    raise SystemExit(main())
