"""`scaledreamer COMMAND ...`: finds the command's module and hands the arguments on."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from scaledreamer import __version__
from scaledreamer.cli.errors import run

COMMANDS = {
    "train": "train a generator by score distillation",
    "generate": "turn prompts into meshes",
    "evaluate": "score a generator on seen and unseen prompts",
    "toybox": "look at the embedded world: truth, prior and generator side by side",
    "prior": "check a diffusion prior, or convert a checkpoint to one",
    "export": "turn a run into a folder to ship",
}
"""Each is a module of `scaledreamer.cli` with `main(argv) -> int`, and its line in the help."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case [] | ["-h" | "--help", *_]:
            width = max(map(len, COMMANDS))
            print("usage: scaledreamer COMMAND ...   (COMMAND --help says more)\n")
            print(*(f"  {name:{width}}  {line}" for name, line in COMMANDS.items()), sep="\n")
            return 0
        case ["--version", *_]:
            print(f"scaledreamer {__version__}")
            return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}"
        raise ValueError(f"command: got {name!r}; {hint}")
    return importlib.import_module(f"scaledreamer.cli.{name}").main(rest)
