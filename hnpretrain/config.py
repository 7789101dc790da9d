"""Settings: defaults < YAML < `key=value`, into nested dataclasses, strictly.

A settings dataclass stands beside the code that it configures; this module only merges and checks.
Unknown keys are errors that name the nearest right key. Values are checked by the dataclasses' own
`__post_init__`, which raise ValueError.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def load(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Builds `cls` from its defaults, then a YAML file, then `key=value` overrides.

    Args:
        cls: a dataclass; fields may be dataclasses themselves.
        path: a YAML file, or None for the defaults.
        overrides: `a.b=value` strings; values are read as YAML.

    Raises:
        ValueError: the file is missing or not a mapping, a key is unknown (the nearest right name
            is shown), or a value has the wrong type or range.
    """
    layers: list[DictConfig] = []
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"config {str(path)!r} is not a file")
        layers.append(_as_mapping(_read_yaml(path), f"config {str(path)!r}"))
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise ValueError(f"override {override!r}: write it as key=value, for example seed=1")
    layers.append(_as_mapping(_read_overrides(overrides), "the overrides"))

    try:
        for layer in layers:
            _check_keys(cls, layer, prefix="")
        merged = OmegaConf.merge(OmegaConf.structured(cls), *layers)
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"{getattr(error, 'full_key', None) or 'config'}: {message}") from error
    assert isinstance(value, cls)
    return value


def to_yaml(settings: Any) -> str:
    """The settings as YAML, all defaults written out; `load` reads it back to an equal value."""
    return OmegaConf.to_yaml(OmegaConf.structured(settings))


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain dicts, lists and scalars, for JSON."""
    value = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(value, dict)
    return {str(key): item for key, item in value.items()}


def require_one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError, with the nearest allowed name, unless `value` is in `allowed`."""
    if value not in allowed:
        raise ValueError(
            f"{key}={value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}"
        )


def nearest(name: str, known: Sequence[str]) -> str:
    """'; did you mean X?' for the closest of the known names, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_yaml(path: str | Path) -> object:
    try:
        return OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config {str(path)!r}: {' '.join(str(error).split())}") from error


def _read_overrides(overrides: Sequence[str]) -> object:
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except yaml.YAMLError as error:
        raise ValueError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from error


def _as_mapping(value: object, what: str) -> DictConfig:
    if not isinstance(value, DictConfig):
        raise ValueError(f"{what} must be a mapping of settings")
    return value


def _check_keys(cls: type, layer: Mapping[Any, Any], prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in layer:
        if key not in names:
            raise ValueError(
                f"unknown key {prefix}{key}{nearest(str(key), names)} (known: {', '.join(names)})"
            )
        inner = hints[str(key)]
        if not dataclasses.is_dataclass(inner):
            continue  # free-form mappings (a model config) keep any key
        value = layer[key]
        if not isinstance(value, DictConfig):
            raise ValueError(f"{prefix}{key} must be a mapping of settings, got {value!r}")
        _check_keys(typing.cast(type, inner), value, f"{prefix}{key}.")
