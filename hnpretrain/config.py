"""Settings: defaults < YAML < `key=value`, into nested dataclasses, strictly.

A settings dataclass stands beside the code that it configures; this module only merges and checks.
Unknown keys are errors that name the nearest right key. Values are checked by the dataclasses' own
`__post_init__`, which raise ValueError.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")

# Of any YAML: how `hnpretrain launch` starts it. What is started passes over it.
LAUNCH_SECTION = "launch"


def load(
    cls: type[T],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    section: str = "",
) -> T:
    """Builds `cls` from its defaults, then a YAML file, then `key=value` overrides.

    Args:
        cls: a dataclass; fields may be dataclasses themselves.
        path: a YAML file, or None for the defaults.
        overrides: `a.b=value` strings. Where the setting is a text, the value is taken as it
            stands (a folder `0123` stays one) but for quotes around it and references to other
            settings (`runs/${seed}`); else it is read as YAML.
        section: the part of the file, and of the overrides (`SECTION.a=value`), that is read;
            without one, all but `launch` is.

    Raises:
        ValueError: the file is missing or not a mapping, a key is unknown (the nearest right name
            is shown), or a value has the wrong type or range.
    """
    layers: list[DictConfig] = []
    if path is not None:
        if not Path(path).is_file():
            raise ValueError(f"config {str(path)!r} is not a file")
        layer = _as_mapping(_read_yaml(path), f"config {str(path)!r}")
        if section:
            layer = _as_mapping(layer.get(section) or OmegaConf.create(), f"{section} in {path}")
        else:
            layer.pop(LAUNCH_SECTION, None)
        layers.append(layer)
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise ValueError(f"override {override!r}: write it as key=value, for example seed=1")
        key = override.removeprefix(f"{section}.") if section else override
        layers.append(_as_mapping(_read_override(cls, key), "the overrides"))

    try:
        for layer in layers:
            _check_keys(cls, layer, prefix=f"{section}." if section else "")
        merged = OmegaConf.merge(OmegaConf.structured(cls), *layers)
        value = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"{getattr(error, 'full_key', None) or 'config'}: {message}") from error
    assert isinstance(value, cls)
    return value


def to_yaml(settings: Any, *, secrets: bool = False) -> str:
    """The settings as YAML, all defaults written out; `load` reads it back to an equal value.

    But for the secrets of URLs, which it holds only if asked to.
    """
    if secrets:
        return OmegaConf.to_yaml(OmegaConf.structured(settings))
    return OmegaConf.to_yaml(to_dict(settings))


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain dicts, lists and scalars, for JSON; without the secrets of URLs."""
    value = without_secrets(OmegaConf.to_container(OmegaConf.structured(settings)))
    assert isinstance(value, dict)
    return {str(key): item for key, item in value.items()}


def changes(before: Any, after: Any) -> dict[str, tuple[Any, Any]]:
    """Where two settings of one class differ: `a.b` -> (before, after)."""
    return dict(_differences(to_dict(before), to_dict(after), ""))


def _differences(before: Any, after: Any, key: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys((*before, *after)):
            inner = f"{key}.{name}" if key else name
            yield from _differences(before.get(name), after.get(name), inner)
    elif before != after:
        yield key, (before, after)


def without_secrets(value: Any) -> Any:
    """A value, of settings or to be told, without what URLs carry of passwords and signatures.

    In texts, lists and mappings, whose keys may be URLs too.
    """
    if isinstance(value, Mapping):
        clean: dict[Any, Any] = {}
        for key, item in value.items():
            name = without_secrets(key)
            while name in clean:  # they differed in their secrets alone
                name = f"{name} (another)"
            clean[name] = without_secrets(item)
        return clean
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return re.sub(r"(://\S*?)\?\S*=\S*", r"\1", re.sub(r"://[^/\s]*@", "://", value))
    return value


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


def _read_override(cls: type, override: str) -> object:
    key, _, value = override.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if _type_of(cls, key) is str and not is_quoted:
        layer = OmegaConf.create()
        OmegaConf.update(layer, key, value)
        return layer
    try:
        return OmegaConf.from_dotlist([override])
    except yaml.YAMLError as error:
        raise ValueError(f"{override}: {' '.join(str(error).split())}") from error


def _type_of(cls: type, key: str) -> Any:
    """The type of the setting that a dotted key names, or None if it names none."""
    found: Any = cls
    for name in key.split("."):
        if dataclasses.is_dataclass(found):
            found = typing.get_type_hints(found).get(name)
        elif typing.get_origin(found) is dict:
            found = typing.get_args(found)[1]
        else:
            return None
    return found


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
        if OmegaConf.is_interpolation(layer, key) or OmegaConf.is_missing(layer, key):
            continue  # known once all layers are there
        value = layer[key]
        if inner is str and not isinstance(value, str):
            # YAML reads 0123 as the number 83 and `no` as false.
            raise ValueError(f"{prefix}{key} must be a text, got {value!r}: put it in quotes")
        if not dataclasses.is_dataclass(inner):
            continue  # free-form mappings (a model config) keep any key
        if not isinstance(value, DictConfig):
            raise ValueError(f"{prefix}{key} must be a mapping of settings, got {value!r}")
        _check_keys(typing.cast(type, inner), value, f"{prefix}{key}.")
