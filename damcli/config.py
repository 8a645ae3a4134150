"""Settings in layers, each value with its origin: recipe < --config FILE < DAMCLI_… < --set a.b=v < flag.

A layer is a nested dictionary with a name. `resolve` lays them over one another, checks the result against a
strict pydantic model and remembers which layer each value came from. Unknown keys are refused with the nearest
known one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from damcli.errors import UsageError

ENVIRONMENT_PREFIX = "DAMCLI_"
# Variables of ours that are no settings of a recipe.
RESERVED = {"DAMCLI_MODEL", "DAMCLI_RUN", "DAMCLI_TEST_DATA", "DAMCLI_SECRET"}


class Strict(BaseModel):
    """A frozen model that refuses unknown keys: the base of every schema of settings and of files on disk."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Layer:
    """Settings from one place. `origin` is what `--show-config` prints: a file's name, `environment`, `--lr`."""

    origin: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved(Generic[M]):
    """The checked settings and, by dotted key, the origin of each."""

    value: M
    origins: dict[str, str]

    def lines(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (dotted key, value, origin) for every setting, in the order of the model."""
        for key, value in flatten(self.value.model_dump(mode="json")):
            yield key, value, self.origins.get(key, "default")


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested dictionary as (dotted key, value).

    >>> list(flatten({"seed": 1, "stage2": {"lr": 0.1}}))
    [('seed', 1), ('stage2.lr', 0.1)]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nest(key: str, value: Any) -> dict[str, Any]:
    """Return `value` under a dotted key as a nested dictionary.

    >>> nest("stage2.lr", 0.1)
    {'stage2': {'lr': 0.1}}
    """
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` onto `under`: dictionaries are merged, anything else is replaced.

    >>> merge({"stage2": {"lr": 0.1, "gamma": 0.002}}, {"stage2": {"lr": 0.05}})
    {'stage2': {'lr': 0.05, 'gamma': 0.002}}
    """
    merged = dict(under)
    for key, value in over.items():
        known = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(known, Mapping)
        merged[key] = merge(known, value) if both else value  # type: ignore[arg-type]
    return merged


def known_keys(model: type[BaseModel]) -> list[str]:
    """Return the dotted keys that a settings model knows, nested models included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        nested = [t for t in _types(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        keys += [f"{name}.{key}" for t in nested for key in known_keys(t)] if nested else [name]
    return keys


def _types(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", None)
    return [annotation] if not arguments else [t for a in arguments for t in _types(a)]


def resolve(model: type[M], layers: Iterable[Layer]) -> Resolved[M]:
    """Lay the layers over one another, later ones on top, and check the result against `model`.

    Raises `UsageError` naming the key, the layer it came from, and the nearest known key or what is allowed.

    >>> class Toy(Strict):
    ...     lr: float = 0.1
    >>> resolve(Toy, [Layer("toy.toml", {"lr": 0.2}), Layer("--lr", {"lr": 0.3})]).origins
    {'lr': '--lr'}
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    known = known_keys(model)
    for layer in layers:
        for key, _ in flatten(layer.values):
            if key not in known and not any(key.startswith(k + ".") or k.startswith(key + ".") for k in known):
                raise unknown_key(key, known, layer.origin)
            origins[key] = layer.origin
        values = merge(values, layer.values)
    try:
        return Resolved(model.model_validate(values), origins)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        origin = origins.get(key) or next((o for k, o in origins.items() if k.startswith(key + ".")), "the recipe")
        own = first["type"] == "value_error"  # a sentence of the schema's own, which says what it got
        what = str(first["ctx"]["error"]) if own else first["msg"].replace("a valid tuple", "a list, as [1, 2]")
        given = "" if own or first["type"] == "missing" else f", got {first['input']!r}"
        raise UsageError(f"setting {key or 'as a whole'}: {what}{given}", where=origin) from error


def unknown_key(key: str, known: Iterable[str], origin: str) -> UsageError:
    """Return the error for a key that no setting has, with the nearest known one as the fix."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        near = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    fix = f"did you mean {near[0]}?" if near else "see `damcli train --show-config` for all of them"
    return UsageError(f"unknown setting {key}", where=origin, fix=fix)


def file_layer(path: Path) -> Layer:
    """Read a TOML file as a layer. Raises `UsageError` if it is missing or no TOML."""
    return Layer(path.name, read_toml(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises `UsageError` if it is missing or broken."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError("there is no such file", where=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"this is no valid TOML: {error}", where=path) from error


def set_layers(assignments: Iterable[str]) -> list[Layer]:
    """Read `--set a.b=v` assignments; the value is TOML, or text where it is none.

    >>> [layer.values for layer in set_layers(["stage2.lr=0.05", "backbone=densenet121"])]
    [{'stage2': {'lr': 0.05}}, {'backbone': 'densenet121'}]
    """
    layers = []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not (equals and key.strip()):
            raise UsageError(f"--set takes key=value, got {assignment!r}", fix="write --set stage2.lr=0.05")
        layers.append(Layer(f"--set {key.strip()}", nest(key.strip(), _toml_value(text.strip()))))
    return layers


def environment_layer(model: type[BaseModel], environment: Mapping[str, str] = os.environ) -> Layer:
    """Read `DAMCLI_STAGE2__LR=0.05` and the like (`__` between levels). Unknown names are refused.

    >>> class Toy(Strict):
    ...     lr: float = 0.1
    >>> environment_layer(Toy, {"DAMCLI_LR": "0.2", "HOME": "/"}).values
    {'lr': 0.2}
    """
    known = known_keys(model)
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or name in RESERVED:
            continue
        key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if key not in known:
            raise unknown_key(key, known, f"environment variable {name}")
        values = merge(values, nest(key, _toml_value(text)))
    return Layer("environment", values)


UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def interval(text: str) -> tuple[Literal["seconds", "steps"], float]:
    """Read a time or a number of steps: `30 s`, `10 min`, `2h`, `1 d`, `500 steps`. Raises `ValueError`.

    >>> interval("2h"), interval("500 steps")
    (('seconds', 7200.0), ('steps', 500.0))
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text)
    number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    if unit in ("step", "steps") and number >= 1 and number.is_integer():
        return "steps", number
    if unit in UNITS and number > 0:
        return "seconds", number * UNITS[unit]
    raise ValueError(f"takes a time or steps, such as 30 s, 10 min, 2 h or 500 steps; got {text!r}")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
