"""The layer table of the design as data, and the rules of size and style, on the syntax tree."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "scaledreamer"

# A module imports from lower rows and from its own entry; the first row is one entry, and the last
# three are the design's layer 6: commands call the demo page and tools, the root scripts commands.
LAYERS = (
    ("interfaces", "config", "cameras", "rng", "storage"),
    ("kernels", "encoders", "toybox.world"),
    ("rendering", "generators", "priors", "distillation", "data", "mesh"),
    ("pipeline",),
    ("evaluation",),
    ("training", "toybox.train"),
    ("app", "tools"),
    ("cli",),
    ("train_amortized", "generate"),
)
# Packages that hold nothing but a docstring and the version.
BARE = (PACKAGE, f"{PACKAGE}.toybox")

WALLS = {
    "triton": ("scaledreamer/kernels/*/fused.py",),
    "numba": ("scaledreamer/kernels/*/numba_cpu.py",),
    "diffusers": ("scaledreamer/priors/*", "scaledreamer/toybox/train/*"),
    "peft": ("scaledreamer/priors/*",),
    "transformers": (
        "scaledreamer/encoders/*",
        "scaledreamer/priors/*",
        "scaledreamer/toybox/train/*",
    ),
    "accelerate": ("scaledreamer/training/*",),
    "deepspeed": ("scaledreamer/training/*",),
    "webdataset": ("scaledreamer/data/*",),
    "omegaconf": ("scaledreamer/config.py",),
    "yaml": ("scaledreamer/config.py",),
}
DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml"}
FILE_LINES = {
    "scaledreamer/kernels/*/fused.py": 700,
    "scaledreamer/kernels/*/reference.py": 100,
    "train_amortized.py": 40,
    "generate.py": 80,
    "*": 400,
}
FUNCTION_LINES = {"scaledreamer/training/step.py": 40, "*": 60}
BANNED_NAMES = {"utils.py", "misc.py", "helpers.py"}
FREE = {"tests", "benchmarks", "examples"}


@dataclass(frozen=True)
class Source:
    """One Python file; `path` is relative to the repository."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def name(self) -> str:
        """Dotted module name; a package is named without `__init__`."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def is_free(self) -> bool:
        return self.path.parts[0] in FREE

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and dotted target of every import, nested ones too; `from a import b` gives a.b."""
        package = self.name.split(".")
        if self.path.name != "__init__.py":
            package = package[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _limit(table: Mapping[str, int], path: PurePosixPath) -> int:
    return next(limit for pattern, limit in table.items() if fnmatchcase(str(path), pattern))


def _entry(module: str) -> tuple[int, str] | None:
    """Row and entry of the layer table that a dotted name lies in."""
    local = module.removeprefix(f"{PACKAGE}.")
    for row, entries in enumerate(LAYERS):
        for entry in entries:
            if f"{local}.".startswith(f"{entry}."):
                return row, "core" if row == 0 else entry
    return None


def direction(source: Source) -> Iterator[str]:
    if source.is_free:
        return
    here = _entry(source.name)
    if here is None and source.name not in BARE:
        yield "is not in the layer table"
    for line, target in source.imports():
        if target.split(".")[0] not in {PACKAGE, *LAYERS[-1]}:
            continue
        there = _entry(target)
        if there is None:
            if target not in BARE and target.rpartition(".")[0] not in BARE:
                yield f"line {line} imports {target}, which is not in the layer table"
        elif here is None or (there[0] >= here[0] and there != here):
            yield f"line {line} imports {target} against the layers"


def walls(source: Source) -> Iterator[str]:
    if source.is_free:
        return
    for line, target in source.imports():
        allowed = WALLS.get(target.split(".")[0])
        if allowed and not any(fnmatchcase(str(source.path), pattern) for pattern in allowed):
            yield f"line {line} imports {target}; allowed only in {', '.join(allowed)}"


@cache
def _requirements() -> frozenset[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = [re.split(r"[^\w-]", requirement)[0] for one in lists for requirement in one]
    return frozenset(name.lower().replace("-", "_") for name in names)


def requirements(source: Source) -> Iterator[str]:
    """Every third-party package that is imported is one that pyproject.toml asks for."""
    own = {PACKAGE, *LAYERS[-1], *FREE}
    for line, target in source.imports():
        package = target.split(".")[0]
        distribution = DISTRIBUTIONS.get(package, package).lower().replace("-", "_")
        if package not in own | sys.stdlib_module_names and distribution not in _requirements():
            yield f"line {line} imports {package}, which pyproject.toml does not require"


def file_size(source: Source) -> Iterator[str]:
    lines, limit = len(source.text.splitlines()), _limit(FILE_LINES, source.path)
    if lines > limit:
        yield f"has {lines} lines; at most {limit}"


def function_size(source: Source) -> Iterator[str]:
    limit = _limit(FUNCTION_LINES, source.path)
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = [ast.unparse(one).split("(")[0] for one in node.decorator_list]
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > limit and "triton.jit" not in decorators:
            yield f"line {node.lineno}: {node.name} has {lines} lines; at most {limit}"


def names(source: Source) -> Iterator[str]:
    if source.path.name in BANNED_NAMES:
        yield "says nothing by its name"


def star_imports(source: Source) -> Iterator[str]:
    for line, target in source.imports():
        if target.endswith(".*"):
            yield f"line {line} imports {target}"


def prints(source: Source) -> Iterator[str]:
    """Output belongs to commands, and to modules that can be run."""
    is_runnable = any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in source.tree.body
    )
    if source.is_free or is_runnable or fnmatchcase(str(source.path), "scaledreamer/cli/*"):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
            yield f"line {node.lineno} prints"


RULES = (direction, walls, requirements, file_size, function_size, names, star_imports, prints)


def find_cycle(sources: list[Source]) -> list[str]:
    """Modules of one import cycle, or nothing. An import within a function counts."""
    known = {source.name for source in sources}

    def module(target: str) -> str | None:
        return next((one for one in (target, target.rpartition(".")[0]) if one in known), None)

    graph = {
        source.name: {found for _, target in source.imports() if (found := module(target))}
        - {source.name}
        for source in sources
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _sources() -> list[Source]:
    paths = [*ROOT.glob("*.py")]
    for folder in (PACKAGE, *sorted(FREE)):
        paths += (ROOT / folder).rglob("*.py")
    return [
        Source(PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text(encoding="utf-8"))
        for path in sorted(paths)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Callable[[Source], Iterator[str]]) -> None:
    sources = _sources()
    assert len(sources) > 10
    assert [f"{source.path} {found}" for source in sources for found in rule(source)] == []


def test_the_tree_has_no_import_cycle() -> None:
    assert find_cycle([source for source in _sources() if not source.is_free]) == []


def test_every_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / PACKAGE).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


LONG_FUNCTION = "def f():\n" + "    pass\n" * 60
BAD = [
    (direction, "rendering/volume.py", "from scaledreamer.generators import hyper_triplane"),
    (direction, "distillation/asd.py", "import scaledreamer.priors.unet"),
    (direction, "priors/unet.py", "def f():\n    from scaledreamer import distillation"),
    (direction, "priors/unet.py", "from ..training.loop import run"),
    (direction, "interfaces.py", "from scaledreamer.kernels.composite import composite"),
    (direction, "toybox/world/render.py", "from scaledreamer.toybox.train import prior"),
    (direction, "toybox/train/prior.py", "from scaledreamer.training import loop"),
    (direction, "training/loop.py", "from scaledreamer.cli.main import main"),
    (direction, "training/loop.py", "import generate"),
    (direction, "training/loop.py", "from scaledreamer.somewhere import x"),
    (direction, "__init__.py", "from scaledreamer.pipeline import TextTo3D"),
    (direction, "somewhere.py", ""),
    (walls, "rendering/volume.py", "import triton.language as tl"),
    (walls, "kernels/composite/reference.py", "def f():\n    import triton"),
    (walls, "kernels/backend.py", "import numba"),
    (walls, "distillation/vsd.py", "from peft import LoraConfig"),
    (walls, "encoders/clip_text.py", "from diffusers import UNet2DConditionModel"),
    (walls, "generators/hyper_triplane.py", "from transformers import AutoModel"),
    (walls, "evaluation/report.py", "from accelerate import Accelerator"),
    (walls, "training/config.py", "import yaml"),
    (requirements, "mesh/export.py", "import seaborn"),
    (file_size, "mesh/export.py", "\n" * 401),
    (file_size, "kernels/composite/fused.py", "\n" * 701),
    (file_size, "kernels/composite/reference.py", "\n" * 101),
    (function_size, "mesh/export.py", LONG_FUNCTION),
    (
        function_size,
        "mesh/export.py",
        "class C:\n    async " + LONG_FUNCTION.replace("\n", "\n    "),
    ),
    (function_size, "training/step.py", "def f():\n" + "    pass\n" * 40),
    (names, "mesh/utils.py", ""),
    (star_imports, "mesh/export.py", "from torch.nn import *"),
    (prints, "training/loop.py", "print(1)"),
]
GOOD = [
    (direction, "pipeline.py", "from scaledreamer.mesh import export\nimport scaledreamer.rng"),
    (direction, "distillation/asd.py", "from ._timesteps import window"),
    (direction, "cameras.py", "from scaledreamer.interfaces import CameraBatch"),
    (direction, "cli/main.py", "from scaledreamer import __version__, training"),
    (direction, "toybox/__init__.py", ""),
    (walls, "kernels/composite/fused.py", "import triton"),
    (walls, "toybox/train/prior.py", "import diffusers, transformers"),
    (walls, "priors/mv/unet.py", "import diffusers"),
    (walls, "config.py", "from omegaconf import OmegaConf"),
    (requirements, "mesh/export.py", "import json, skimage.measure\nfrom PIL import Image"),
    (file_size, "kernels/composite/fused.py", "\n" * 700),
    (file_size, "cli/generate.py", "\n" * 400),
    (function_size, "kernels/composite/fused.py", "@triton.jit\n" + LONG_FUNCTION),
    (prints, "cli/train.py", "print(1)"),
    (prints, "toybox/train/prior.py", "print(1)\nif __name__ == '__main__':\n    pass"),
]


def _source(path: str, text: str) -> Source:
    return Source(PurePosixPath(PACKAGE) / path, text)


@pytest.mark.parametrize(("rule", "path", "text"), BAD)
def test_each_rule_catches(rule: Callable[[Source], Iterator[str]], path: str, text: str) -> None:
    assert len(list(rule(_source(path, text)))) == 1


@pytest.mark.parametrize(("rule", "path", "text"), GOOD)
def test_each_rule_allows(rule: Callable[[Source], Iterator[str]], path: str, text: str) -> None:
    assert list(rule(_source(path, text))) == []


def test_root_scripts_are_thin_and_call_commands() -> None:
    script = Source(PurePosixPath("generate.py"), "from scaledreamer.cli.generate import main\n")
    assert [found for rule in RULES for found in rule(script)] == []
    assert list(file_size(Source(PurePosixPath("train_amortized.py"), "\n" * 41)))


def test_cycles_are_found_and_straight_lines_are_not() -> None:
    a = _source("data/a.py", "from scaledreamer.data import b")
    b = _source("data/b.py", "from . import c")
    c = _source("data/c.py", "def f():\n    from .a import x")
    assert set(find_cycle([a, b, c])) == {f"scaledreamer.data.{one}" for one in "abc"}
    assert find_cycle([a, b, _source("data/c.py", "")]) == []
    door = _source("data/__init__.py", "from .a import x")
    assert find_cycle([door, _source("data/a.py", "from scaledreamer.data import y")])
