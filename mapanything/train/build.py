"""Objects that a config describes (Hydra's `_target_`), made only where they are this package's own.

A config comes from a command line, a run's folder or somebody else's file: any function could be named in it, and would run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from mapanything.errors import InputError

PACKAGE = "mapanything."


def build(config: DictConfig, what: str, **overrides: Any) -> Any:
    """The object of a config's `_target_`, made with the other entries as arguments.

    Args:
        what: the config's name, for messages. overrides: other values of entries.

    Raises:
        InputError: a target outside of this package, arguments that do not fit, or what the object itself refuses.
    """
    for target in _targets(OmegaConf.to_container(config, resolve=True)):
        check_target(target, what)
    try:
        return instantiate(config, **overrides)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is not None:
            raise InputError(str(cause)) from error
        if isinstance(error.__cause__, TypeError):
            raise InputError(f"{what}: {error.__cause__}") from error
        raise


def check_target(target: Any, what: str) -> None:
    """Raises InputError for a target that is no class or function of this package, whatever path its name takes."""
    name = str(target)
    if isinstance(target, str) and name.startswith(PACKAGE):
        try:
            found = get_object(name)
        except (ImportError, ValueError, AttributeError) as error:
            raise InputError(f"{what}: there is no {name}; correct its _target_") from error
        if callable(found) and str(getattr(found, "__module__", "")).startswith(PACKAGE):
            return
    raise InputError(f"{what}: _target_ is {name[:100]!r}; it must lie in {PACKAGE}*, nothing else is run from a config")


def _targets(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        for inner in value.values():
            yield from _targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _targets(inner)
