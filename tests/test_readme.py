"""What the README tells people to type is understood."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest

from scaledreamer.cli import evaluate, export, generate, prior, toybox, train
from scaledreamer.config import load_config
from scaledreamer.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ONE_STEP = "examples/one_step_2d.py"
PARSERS = {
    "generate.py": generate._parser,
    "train_amortized.py": train._parser,
    "evaluate": evaluate._parser,
    "export": export._parser,
    "toybox": toybox._parser,
    "prior": prior._parser,
    ONE_STEP: runpy.run_path(str(ROOT / ONE_STEP))["create_parser"],
}
OTHERS = ("source", "tensorboard", "bash")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _commands() -> list[list[str]]:
    lines = [line for block in _blocks("bash") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def test_there_are_exactly_two_set_up_commands():
    scripts = [words for words in _commands() if words[0] == "bash"]
    assert scripts == [["bash", "launch/quickstart.sh"], ["bash", "launch/test.sh"]]
    assert all((ROOT / words[1]).is_file() for words in scripts)


@pytest.mark.parametrize("words", [words for words in _commands() if words[0] not in OTHERS])
def test_commands_parse(words: list[str]):
    name = next(word for word in words if word in PARSERS)
    parser, arguments = PARSERS[name](), words[words.index(name) + 1 :]
    has_commands = name in ("toybox", "prior")  # which argparse does not mix with the rest
    options = (parser.parse_args if has_commands else parser.parse_intermixed_args)(arguments)
    if name == "train_amortized.py":
        load_config(TrainConfig, ROOT / options.config, options.overrides)


def test_python_imports_exist():
    for block in _blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_links_and_pictures_are_there():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
