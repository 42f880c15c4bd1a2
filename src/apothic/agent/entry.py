"""Find the function that a container is for: by module and name in the deployment's files, or by value in a file."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apothic.agent.frames import Setup
from apothic.context import CurrentService

ahead: set[str] = set()  # modules that are loaded here, and would not be in a fresh interpreter yet


def service_of(setup: Setup, base_url: str) -> CurrentService:
    """Return what a service's container calls others as."""
    return CurrentService(setup.app, setup.function.name, setup.deployment, base_url, setup.token)


def load(setup: Setup) -> Callable[..., Any]:
    """Import what `setup` names and return the plain callable behind it. Raises whatever the import raises."""
    sys.path.insert(0, setup.code_dir)
    _give_way(setup.code_dir)
    spec = setup.function
    if setup.payload_path is not None:
        import pickle

        with Path(setup.payload_path).open("rb") as source:
            found = pickle.load(source)
    else:
        found = importlib.import_module(spec.module)
        for name in spec.qualname.split("."):
            found = getattr(found, name)
    entry = getattr(found, "__apothic_entry__", found)
    if not callable(entry):
        raise TypeError(f"{spec.module}.{spec.qualname} is no function but {type(entry).__name__}")
    function: Callable[..., Any] = entry
    return function


def _give_way(code_dir: str) -> None:
    """Forget what was loaded ahead under a name that a file of the deployment has: the first on the path is meant."""
    own = {name.partition(".")[0] for name in os.listdir(code_dir)}  # noqa: PTH208
    for name in ahead:
        if name.partition(".")[0] in own:
            sys.modules.pop(name, None)
