from __future__ import annotations

import importlib
import warnings
from typing import NoReturn

import pytest

from scaledreamer import __version__
from scaledreamer.cli import main as dispatcher
from scaledreamer.cli.errors import run
from scaledreamer.cli.main import COMMANDS, main


def fail(error: BaseException) -> NoReturn:
    raise error


def test_help_lists_every_command_and_each_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert f"  {name}" in said
        assert line in said
        assert callable(importlib.import_module(f"scaledreamer.cli.{name}").main)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scaledreamer {__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("generat", "did you mean 'generate'?"), ("xyz", "expected one of train,")]
)
def test_unknown_command(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--prompt", "a mug"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: command: got '{name}'; {hint}")
    assert said.err.count("\n") == 1


def test_arguments_and_exit_code_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("scaledreamer.cli.generate")
    monkeypatch.setattr(module, "main", lambda argv: len(argv))
    assert dispatcher.main(["generate", "--prompt", "a", "b"]) == 3


def test_run_gives_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: None) == 0
    assert run(lambda: 1) == 1
    assert run(lambda: fail(ValueError("bad\nvalue"))) == 2
    assert run(lambda: fail(FileNotFoundError(2, "No such file", "x.yaml"))) == 2
    assert run(lambda: fail(KeyboardInterrupt())) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: bad value", "error: No such file: x.yaml", "interrupted"]
    with pytest.raises(RuntimeError):
        run(lambda: fail(RuntimeError("a bug")))


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        warnings.simplefilter("default")
        warnings.warn("mind\nthe gap", stacklevel=1)

    assert run(command) == 0
    assert capsys.readouterr().err == "warning: mind the gap\n"


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEDREAMER_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad"):
        run(lambda: fail(ValueError("bad")))


def test_only_the_first_process_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(lambda: fail(ValueError("bad"))) == 2
    assert capsys.readouterr().err == ""
