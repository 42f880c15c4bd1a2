"""The surface is the reference page's: names, parameters, order, kinds and defaults."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import apothic
from apothic import App, ControlPlaneClient, Job, RemoteFunction
from apothic.client.blocking import awaiting, blocking, iterating, streaming

ROOT = Path(__file__).parent.parent.parent
PAGE = tomllib.loads((Path(__file__).parent / "reference.toml").read_text())
app = App("reference")


@app.function()
def square(number: int) -> int:
    return number * number


def handle(owner: str) -> Any:
    client = ControlPlaneClient("http://127.0.0.1:1")
    return {
        "Function": square,
        "RemoteFunction": RemoteFunction.from_name("a", "b", client=client),
        "Job": Job("job_0123456789abcdefghjkmnpqrs", client),
    }[owner]


def lines(*, called: bool) -> Iterator[Any]:
    for owner, told in PAGE.items():
        for line in told.get("lines", []):
            if ("(" in line["text"].split(" ->")[0]) is called:
                side = ".aio" if line.get("async") else ""
                yield pytest.param(owner, line, id=f"{owner}{side}.{line['text'].split(' ->')[0].split('(')[0]}")


def declared(text: str) -> list[tuple[str, Any, Any]]:
    """Return name, kind and default of each parameter that a line of the page has."""
    names: dict[str, Any] = {}
    head = text.split(" ->")[0].replace("__init__", "init")
    exec(f"from __future__ import annotations\ndef {head}: ...", names)
    (function,) = (value for value in names.values() if inspect.isfunction(value))
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(("owner", "line"), list(lines(called=True)))
def test_the_method_is_as_the_page_says(owner: str, line: dict[str, Any]) -> None:
    name = line["text"].split("(")[0]
    member = getattr(apothic, owner) if name == "__init__" else getattr(handle(owner), name)
    if line.get("async"):
        member = getattr(handle(owner).aio, name)
        found = inspect.getattr_static(handle(owner).aio, name)
        assert isinstance(found, iterating) if line.get("iterates") else inspect.iscoroutinefunction(member)

    parameters = inspect.signature(member).parameters.values()
    if name in ("spawn", "remote") and owner == "Function":
        # Written with the function's own names, for editors: at run time anything is passed on.
        parameters = inspect.signature(getattr(apothic.Function, name).fn).parameters.values()
        parameters = [p for p in parameters if p.name != "self"]
    extra = line.get("extra", [])

    assert [(p.name, p.kind, p.default) for p in parameters if p.name not in extra] == declared(line["text"])
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.name in extra)


@pytest.mark.parametrize(("owner", "line"), list(lines(called=False)))
def test_the_property_is_as_the_page_says(owner: str, line: dict[str, Any]) -> None:
    name = line["text"].split(" ->")[0]
    cls = getattr(apothic, owner)
    found = inspect.getattr_static(cls, name)

    assert isinstance(found, property)
    assert found.fset is None
    returned = (found.fget.__annotations__)["return"]
    if name == "aio":
        assert returned.split("[")[0] == f"{owner}Aio"
    else:
        assert returned == line["text"].split(" -> ")[1]


def test_the_page_is_here_in_full() -> None:
    counts = {owner: len(told.get("lines", [])) for owner, told in PAGE.items()}
    assert counts == {
        "Function": 17, "RemoteFunction": 22, "Job": 18, "JobStreamCursor": 1, "JobStreamCheckpoint": 1,
        "JobStreamEvent": 1, "stream_helper_types": 0,
    }  # fmt: skip
    assert len(PAGE["stream_helper_types"]["names"]) == 8


@pytest.mark.parametrize("name", PAGE["stream_helper_types"]["names"])
def test_the_helper_type_is_importable_and_of_its_family(name: str) -> None:
    family = apothic.errors.ApothicError if name.endswith("Error") else apothic.JobStreamEvent
    assert issubclass(getattr(apothic, name), family)


@pytest.mark.parametrize("owner", ["Function", "RemoteFunction", "Job", "App", "ControlPlaneClient", "RemoteApp"])
def test_handle_and_facet_name_the_same_deeds(owner: str) -> None:
    cls = getattr(apothic, owner)
    facet = get_type_hints(inspect.getattr_static(cls, "aio").fget, vars(sys.modules[cls.__module__]))["return"]
    facet = getattr(facet, "__origin__", facet)
    deeds = {name for name in dir(cls) if isinstance(inspect.getattr_static(cls, name), blocking | streaming)}

    for name in deeds:
        mirrored = inspect.getattr_static(facet, name)
        assert isinstance(mirrored, awaiting | iterating) or inspect.iscoroutinefunction(mirrored), name


def test_every_public_name_is_there_and_no_other() -> None:
    assert apothic.__all__ == sorted(apothic.__all__, key=lambda n: (n == n.lower() or n.startswith("_"), n))
    assert all(hasattr(apothic, name) for name in apothic.__all__)
    assert dir(apothic) == sorted(apothic.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        apothic.nonsense  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert apothic.__version__ == told["version"]


@pytest.mark.parametrize(
    "statement", ["import apothic", "import apothic; apothic.App; apothic.Job; apothic.JobLogEvent"]
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    program = f"{statement}; import sys; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={
        "PYTHONPATH": str(ROOT / "src")
    })  # fmt: skip

    heavy = {
        "aiohttp",
        "uvicorn",
        "starlette",
        "sqlite3",
        "cloudpickle",
        "click",
        "rich",
        "numpy",
        "websockets",
        "psutil",
    }
    assert heavy & set(told.stdout.split()) == set()
