"""Typed configuration: dataclass defaults <- YAML <- `a.b=c` overrides.

A configuration is a frozen dataclass whose fields are scalars, tuples, `Literal`s, `Schedule`s,
nested dataclasses or `Component`s. OmegaConf only parses; the typed, strict builder is ours,
because a component's name selects the class its other keys are checked against.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin
from typing import get_type_hints as type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

T = TypeVar("T")

_SCALARS: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    Path: (str, Path),
}


@dataclass(frozen=True)
class Constant:
    """A schedule that never changes."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` at `from_step` to `end` at `to_step`, constant outside."""

    start: float
    end: float
    from_step: int
    to_step: int

    def __post_init__(self) -> None:
        if not self.from_step < self.to_step:
            raise ValueError(f"got from_step {self.from_step}; must lie below to_step")

    def __call__(self, step: int) -> float:
        progress = (step - self.from_step) / (self.to_step - self.from_step)
        progress = min(max(progress, 0.0), 1.0)
        return (1.0 - progress) * self.start + progress * self.end


Schedule = Constant | Linear


@dataclass(frozen=True)
class Component:
    """A selected component: a module's name and an instance of its `Config`.

    A field is annotated `Annotated[Component, "package"]` and written `{name: ..., **fields}`.
    """

    name: str
    config: Any


def component_names(package: str) -> list[str]:
    """Components of a package: its modules without a leading underscore."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if not m.name.startswith("_"))


def component_module(package: str, name: str) -> ModuleType:
    """Imports component `name` of a package; a dotted name is imported from anywhere.

    Raises: ValueError for an unknown name.
    """
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ValueError(f"got component {name!r}; no module {error.name!r}") from error
    names = component_names(package)
    if name not in names:
        raise ValueError(f"got component {name!r}; {_suggest(name, names)} of {package}")
    return importlib.import_module(f"{package}.{name}")


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Builds a nested dataclass from plain values; what is not given keeps its default.

    Raises: ValueError naming the dotted key for an unknown or missing key or a wrong type.
    """
    return cast(T, _build(cls, (values,), where, dataclasses.MISSING))


def load_config(cls: type[T], path: Path | None, overrides: Sequence[str]) -> T:
    """Builds `cls` from its defaults, a YAML file and `a.b=c` overrides, the later winning.

    Naming another component drops what lower layers said about the former one.
    Raises: ValueError in one line for anything wrong in the file or the overrides.
    """
    layers = (_read_yaml(path), _read_overrides(overrides))
    return cast(T, _build(cls, layers, "", dataclasses.MISSING))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values that `build` turns back into an equal configuration."""
    return cast(dict[str, Any], _plain(config))


def to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def _read_yaml(path: Path | None) -> Any:
    if path is None:
        return {}
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        reason = error.strerror or _one_line(error)
        raise ValueError(f"config {path}: {reason}; give a readable YAML file") from error
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"config {path}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config {path}: got a {type(values).__name__} at the top, not a mapping")
    return cast(Any, values)


def _read_overrides(overrides: Sequence[str]) -> Any:
    merged = DictConfig({})
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise ValueError(f"got override {override!r}; write it as key=value or a.b=value")
        try:
            merged = cast(DictConfig, OmegaConf.merge(merged, OmegaConf.from_dotlist([override])))
        except (YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f"override {override!r}: {_one_line(error)}") from error
    return OmegaConf.to_container(merged, resolve=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _suggest(name: str, names: Iterable[str]) -> str:
    known = sorted(names)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if nearest:
        return "did you mean " + " or ".join(repr(one) for one in nearest) + "?"
    return f"expected one of {', '.join(known) or 'none'}"


def _error(where: str, message: str) -> ValueError:
    return ValueError(f"{where}: {message}" if where else message)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _build(hint: Any, layers: tuple[Any, ...], where: str, default: Any) -> Any:
    """Builds one value of type `hint` from the layers that mention it, lowest first, never none."""
    origin, value = get_origin(hint), layers[-1]
    if hint is Any:
        return value
    if origin is Annotated and get_args(hint)[0] is Component:
        return _build_component(get_args(hint)[1], layers, where, default)
    if origin in (Union, UnionType):
        return _build_union(hint, layers, where, default)
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(cast(type, hint), layers, where, default)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            raise _mismatch(hint, value, where)
        return value
    if origin in (tuple, list):
        return _build_sequence(hint, value, where)
    if origin in (dict, Mapping):
        return _build_mapping(hint, layers, where, default)
    if hint not in _SCALARS:
        raise TypeError(f"{where}: a configuration field can't be a {hint}")
    if not isinstance(value, _SCALARS[hint]) or (isinstance(value, bool) and hint is not bool):
        raise _mismatch(hint, value, where)
    return hint(value)


def _build_dataclass(cls: type, layers: tuple[Any, ...], where: str, default: Any) -> Any:
    if isinstance(layers[-1], cls):
        return layers[-1]
    mappings = _trailing_mappings(cls, layers, where)
    hints = type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in (key for layer in mappings for key in layer):
        if key not in fields:
            raise _error(_join(where, key), f"unknown key; {_suggest(str(key), fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        known = _default(field) if default is dataclasses.MISSING else getattr(default, name)
        given = tuple(layer[name] for layer in mappings if name in layer)
        if given:
            values[name] = _build(hints[name], given, _join(where, name), known)
        elif known is dataclasses.MISSING:
            raise _error(_join(where, name), f"missing; expected {_describe(hints[name])}")
        else:
            values[name] = known
    return _construct(cls, values, where)


def _construct(cls: Callable[..., Any], values: dict[str, Any], where: str) -> Any:
    try:
        return cls(**values)
    except ValueError as error:
        if where and not str(error).startswith(where):
            raise _error(where, str(error)) from error
        raise


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _build_component(package: str, layers: tuple[Any, ...], where: str, default: Any) -> Component:
    if isinstance(layers[-1], Component):
        return layers[-1]
    mappings = _trailing_mappings(Annotated[Component, package], layers, where)
    name, known = "", dataclasses.MISSING
    if isinstance(default, Component):
        name, known = default.name, default.config
    kept: list[Mapping[str, Any]] = []
    for layer in mappings:
        if layer.get("name", name) != name:
            name, known, kept = layer["name"], dataclasses.MISSING, []
        kept.append({key: value for key, value in layer.items() if key != "name"})
    if not isinstance(name, str) or not name:
        names = ", ".join(component_names(package))
        raise _error(_join(where, "name"), f"got {name!r}; expected one of {names}")
    try:
        module = component_module(package, name)
    except ValueError as error:
        raise _error(_join(where, "name"), str(error)) from error
    if not dataclasses.is_dataclass(getattr(module, "Config", None)):
        raise _error(_join(where, "name"), f"got {name!r}, whose module has no Config dataclass")
    return Component(name, _build_dataclass(module.Config, tuple(kept), where, known))


def _build_union(hint: Any, layers: tuple[Any, ...], where: str, default: Any) -> Any:
    value = layers[-1]
    members = [member for member in get_args(hint) if member is not NoneType]
    if value is None and len(members) < len(get_args(hint)):
        return None
    if set(members) == {Constant, Linear}:
        return _build_schedule(layers, where, default)
    if default is None:
        default = dataclasses.MISSING
    if len(members) == 1:
        return _build(members[0], layers, where, default)
    for member in members:
        try:
            return _build(member, (value,), where, dataclasses.MISSING)
        except ValueError:
            continue
    raise _mismatch(hint, value, where)


def _build_schedule(layers: tuple[Any, ...], where: str, default: Any) -> Schedule:
    value = layers[-1]
    if isinstance(value, Constant | Linear):
        return value
    if isinstance(value, Mapping):
        known = default if isinstance(default, Linear) else dataclasses.MISSING
        return _build_dataclass(Linear, layers, where, known)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _mismatch(Schedule, value, where)
    return Constant(float(value))


def _build_sequence(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if not isinstance(value, list | tuple):
        raise _mismatch(hint, value, where)
    items = cast(Sequence[Any], value)
    if origin is list or arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(items)
    if len(items) != len(arguments):
        raise _mismatch(hint, value, where)
    built: Any = [
        _build(item_hint, (item,), f"{where}[{i}]", dataclasses.MISSING)
        for i, (item_hint, item) in enumerate(zip(arguments, items, strict=True))
    ]
    return built if origin is list else tuple(built)


def _build_mapping(hint: Any, layers: tuple[Any, ...], where: str, default: Any) -> dict[str, Any]:
    mappings = _trailing_mappings(hint, layers, where)
    known: dict[str, Any] = {} if default is dataclasses.MISSING else dict(default)
    built = dict(known)
    for key in dict.fromkeys(key for layer in mappings for key in layer):
        given = tuple(layer[key] for layer in mappings if key in layer)
        former = known.get(key, dataclasses.MISSING)
        built[key] = _build(get_args(hint)[1], given, _join(where, key), former)
    return built


def _trailing_mappings(
    hint: Any, layers: tuple[Any, ...], where: str
) -> tuple[Mapping[str, Any], ...]:
    """The layers after the last one that is not a mapping, which they replace."""
    if not isinstance(layers[-1], Mapping):
        raise _mismatch(hint, layers[-1], where)
    start = max((i + 1 for i, one in enumerate(layers) if not isinstance(one, Mapping)), default=0)
    return layers[start:]


def _mismatch(hint: Any, value: Any, where: str) -> ValueError:
    advice = "; quote it" if hint is str and isinstance(value, int | float) else ""
    got = f"{value!r} ({type(value).__name__})"
    return _error(where, f"got {got}; expected {_describe(hint)}{advice}")


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"a mapping with 'name' (a module of {arguments[1]})"
    if origin in (Union, UnionType):
        members = [one for one in arguments if one is not Constant]
        return " or ".join(_describe(one) for one in members)
    if hint is Linear:
        return "a number or a mapping of start, end, from_step, to_step"
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} values ({', '.join(map(_describe, arguments))})"
    if origin in (tuple, list):
        return f"a list of {_describe(arguments[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a mapping"
    return {NoneType: "null", Path: "a path", str: "a string"}.get(hint) or hint.__name__


def _plain(value: Any) -> Any:
    if isinstance(value, Component):
        return {"name": value.name, **_plain(value.config)}
    if isinstance(value, Constant):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in cast(Sequence[Any], value)]
    return str(value) if isinstance(value, Path) else value
