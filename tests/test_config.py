"""Configuration: precedence, component selection, round trip, and one-line errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledreamer.config import (
    Component,
    Constant,
    Linear,
    Schedule,
    build,
    component_module,
    load_config,
    to_dict,
    to_yaml,
)


@dataclass(frozen=True, kw_only=True)
class PlanesConfig:
    planes_px: int = 32
    scale: float = 0.5

    def __post_init__(self) -> None:
        if self.planes_px < 1:
            raise ValueError(f"planes_px: got {self.planes_px}; must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    levels: int = 8


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    name: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.99)
    warm_up: int | None = None


@dataclass(frozen=True, kw_only=True)
class Root:
    generator: Annotated[Component, "toys"] = field(
        default_factory=lambda: Component("planes", PlanesConfig(planes_px=16, scale=0.25))
    )
    optimizer: Optimizer = Optimizer(lr=5e-4)
    extra: Optimizer | None = None
    teacher: Annotated[Component, "toys"] | None = None
    eikonal: Schedule = Linear(1.0, 0.1, 0, 100)
    weights: dict[str, Schedule] = field(default_factory=lambda: {"asd": Constant(1.0)})
    views: tuple[int, ...] = (0, 90)
    folder: Path = Path("runs")
    note: str = ""
    is_dry: bool = False
    size: int | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Needy:
    steps: int


@pytest.fixture(autouse=True)
def _toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `toys` with components planes, table and bare."""
    package = tmp_path / "toys"
    package.mkdir()
    for name in ("__init__", "planes", "table", "bare", "_shared"):
        (package / f"{name}.py").touch()
    (package / "broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    component_module("toys", "planes").__dict__["Config"] = PlanesConfig
    component_module("toys", "table").__dict__["Config"] = TableConfig
    yield
    for name in [one for one in sys.modules if one.split(".")[0] == "toys"]:
        del sys.modules[name]


def _load(yaml: str, *overrides: str, folder: Path, cls: type[Any] = Root) -> Any:
    path = folder / "config.yaml"
    path.write_text(yaml)
    return load_config(cls, path, overrides)


def test_defaults_yaml_and_overrides_win_in_that_order(tmp_path: Path) -> None:
    assert load_config(Root, None, []) == Root()
    yaml = "optimizer: {name: adamw}\nnote: from yaml\nviews: [0, 45]\n"
    config = _load(yaml, "optimizer.lr=3e-4", "note=from override", folder=tmp_path)
    assert config.optimizer == Optimizer(name="adamw", lr=3e-4)
    assert (config.note, config.views, config.folder) == ("from override", (0, 45), Path("runs"))


def test_partial_mapping_keeps_the_fields_of_the_default_instance(tmp_path: Path) -> None:
    assert _load("optimizer: {betas: [0.5, 0.9]}", folder=tmp_path).optimizer.lr == 5e-4
    assert _load("extra: {warm_up: 3}", folder=tmp_path).extra == Optimizer(warm_up=3)
    assert _load("extra: {warm_up: 3}", "extra=null", folder=tmp_path).extra is None


def test_component_fields_merge_and_a_new_name_drops_the_old_ones(tmp_path: Path) -> None:
    def load(yaml: str, *overrides: str) -> Component:
        return _load(yaml, *overrides, folder=tmp_path).generator

    planes = Component("planes", PlanesConfig(planes_px=64, scale=0.25))
    assert load("", "generator.planes_px=64") == planes
    assert load("generator: {name: planes}", "generator.planes_px=64") == planes
    assert load("generator: {planes_px: 64}", "generator.name=planes") == planes
    assert load("generator: {name: planes, scale: 1}", "generator.name=table") == Component(
        "table", TableConfig()
    )
    assert load("generator: {name: table, levels: 4}").config.levels == 4
    assert load("generator: {name: table}", "generator.name=planes").config == PlanesConfig()
    assert load("", "generator.levels=2", "generator.name=table").config.levels == 2
    teacher = _load("teacher: {name: table}", "teacher.levels=1", folder=tmp_path).teacher
    assert teacher == Component("table", TableConfig(levels=1))


def test_component_by_dotted_name_comes_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ModuleType("elsewhere.custom")
    foreign.__dict__["Config"] = TableConfig
    monkeypatch.setitem(sys.modules, "elsewhere", ModuleType("elsewhere"))
    monkeypatch.setitem(sys.modules, "elsewhere.custom", foreign)
    config = load_config(Root, None, ["generator.name=elsewhere.custom", "generator.levels=5"])
    assert config.generator == Component("elsewhere.custom", TableConfig(levels=5))
    assert component_module("toys", "elsewhere.custom") is foreign


def test_import_error_inside_a_component_is_not_hidden() -> None:
    for name in ("broken", "toys.broken"):
        with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
            component_module("toys", name)


def test_schedules_are_numbers_or_linear_fields(tmp_path: Path) -> None:
    config = _load(
        "weights: {eikonal: {start: 1, end: 0, from_step: 0, to_step: 4}}", folder=tmp_path
    )
    assert config.weights == {"asd": Constant(1.0), "eikonal": Linear(1.0, 0.0, 0, 4)}
    assert load_config(Root, None, ["eikonal=2"]).eikonal == Constant(2.0)
    assert load_config(Root, None, ["eikonal.to_step=7"]).eikonal == Linear(1.0, 0.1, 0, 7)
    values = [Linear(2.0, 1.0, 10, 20)(step) for step in (0, 10, 15, 20, 99)]
    assert values == [2.0, 2.0, 1.5, 1.0, 1.0]
    assert Constant(0.3)(12) == 0.3


@given(
    start=st.floats(-1e6, 1e6),
    end=st.floats(-1e6, 1e6),
    from_step=st.integers(0, 1000),
    length=st.integers(1, 1000),
    step=st.integers(-10, 3000),
)
def test_linear_stays_between_its_ends(
    start: float, end: float, from_step: int, length: int, step: int
) -> None:
    value = Linear(start, end, from_step, from_step + length)(step)
    slack = 1e-9 * max(abs(start), abs(end))
    assert min(start, end) - slack <= value <= max(start, end) + slack


def test_resolved_config_round_trips_through_yaml(tmp_path: Path) -> None:
    config = replace(
        Root(),
        generator=Component("table", TableConfig(levels=3)),
        extra=Optimizer(lr=1e-5, warm_up=2),
        note="${not} an interpolation: 7",
        views=(),
    )
    assert build(Root, to_dict(config)) == config
    assert _load(to_yaml(config), folder=tmp_path) == config
    assert to_dict(config)["generator"] == {"name": "table", "levels": 3}
    assert to_dict(config)["weights"] == {"asd": 1.0}


def test_built_values_are_taken_as_they_are() -> None:
    planes = Component("planes", PlanesConfig())
    optimizer = Optimizer(lr=1.0)
    config = build(Root, {"generator": planes, "optimizer": optimizer, "eikonal": Constant(1.0)})
    assert (config.generator, config.optimizer, config.eikonal(0)) == (planes, optimizer, 1.0)


@pytest.mark.parametrize(
    ("yaml", "override", "message"),
    [
        ("optimiser: {}", None, r"^optimiser: unknown key; did you mean 'optimizer'\?$"),
        ("", "optimizer.lrr=1", r"^optimizer\.lrr: unknown key; did you mean 'lr'"),
        ("zzz: 1", None, r"^zzz: unknown key; expected one of eikonal, extra"),
        ("", "generator.plane_px=1", r"^generator\.plane_px: unknown key; .* 'planes_px'\?$"),
        ("generator: {name: plane}", None, r"^generator\.name: got component 'plane'; .*'planes'"),
        ("", "generator.name=_shared", r"^generator\.name: got component '_shared'"),
        ("", "generator.name=no.such", r"^generator\.name: got component 'no\.such'; no module"),
        ("", "generator.name=bare", r"^generator\.name: got 'bare', whose module has no Config"),
        ("", "generator.name=3", r"^generator\.name: got 3; expected one of bare, broken, planes"),
        ("teacher: {levels: 1}", None, r"^teacher\.name: got ''; expected one of"),
        ("generator: planes", None, r"^generator: got 'planes' \(str\); expected a mapping with"),
        ("optimizer: ", None, r"^optimizer: got None \(NoneType\); expected a mapping$"),
        ("", "optimizer.lr=fast", r"^optimizer\.lr: got 'fast' \(str\); expected float$"),
        ("", "optimizer.lr=true", r"^optimizer\.lr: got True \(bool\); expected float$"),
        ("", "optimizer.warm_up=1.5", r"^optimizer\.warm_up: got 1\.5 \(float\); expected int$"),
        ("", "optimizer.betas=[1]", r"^optimizer\.betas: .*a list of 2 values \(float, float\)$"),
        ("", "optimizer.betas=[1, x]", r"^optimizer\.betas\[1\]: got 'x'"),
        ("", "optimizer.name=sgd", r"^optimizer\.name: .*expected one of 'adam', 'adamw'$"),
        ("", "views=3", r"^views: got 3 \(int\); expected a list of int$"),
        ("", "note=12", r"^note: got 12 \(int\); expected a string; quote it$"),
        ("", "is_dry=1", r"^is_dry: got 1 \(int\); expected bool$"),
        ("", "size=big", r"^size: got 'big' \(str\); expected int or one of 'auto'$"),
        ("", "eikonal=x", r"^eikonal: .*a number or a mapping of start, end, from_step, to_step$"),
        ("weights: {a: {start: 1}}", None, r"^weights\.a\.end: missing; expected float$"),
        ("", "eikonal.to_step=0", r"^eikonal: got from_step 0; must lie below to_step$"),
        ("", "generator.planes_px=0", r"^generator: planes_px: got 0; must be at least 1$"),
        ("", "foo", r"^got override 'foo'; write it as key=value or a\.b=value$"),
        ("", "=1", r"^got override '=1'"),
        ("", "a..b=1", r"^got override 'a\.\.b=1'"),
        ("", "views=[1,", r"^override 'views=\[1,': "),
        ("a: [1,", None, r"config\.yaml: not valid YAML: "),
        ("note: a\nnote: b", None, r"config\.yaml: not valid YAML: .*duplicate key note"),
        ("[1, 2]", None, r"config\.yaml: got a list at the top, not a mapping$"),
        ("1", None, r"config\.yaml: "),
    ],
)
def test_errors_are_one_line_and_name_the_key(
    yaml: str, override: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _load(yaml, *([] if override is None else [override]), folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_key_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^steps: missing; expected int$"):
        load_config(Needy, None, [])
    with pytest.raises(ValueError, match=r"^train\.steps: missing"):
        build(Needy, {}, "train")
    missing = tmp_path / "no.yaml"
    with pytest.raises(ValueError, match=re.escape(f"config {missing}: No such file")):
        load_config(Root, missing, [])
    with pytest.raises(ValueError, match="Is a directory"):
        load_config(Root, tmp_path, [])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config(Root, tmp_path / "binary.yaml", [])
