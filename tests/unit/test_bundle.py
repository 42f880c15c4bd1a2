"""Which files travel with an app, under which names, and what is refused."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from apothic import App
from apothic.client import bundle
from apothic.client.bundle import Home, collect, home_of
from apothic.errors import ConfigError
from apothic.protocol import pickling

Writes = Callable[..., ModuleType]


@pytest.fixture
def writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writes]:
    """Write files below a folder that is imported from, and import a module of them."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(module: str, **files: str) -> ModuleType:
        for place, text in files.items():
            path = tmp_path / place.replace("__slash__", "/").replace("__dot__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return importlib.import_module(module)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def package(tmp_path: Path, writes: Writes) -> Path:
    root = tmp_path / "shop"
    for place in ("__init__.py", "till.py", "parts/__init__.py", "parts/wheels.py", "prices.csv"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(f"# {place}\ndef f(): return 1\n")
    writes("shop.parts.wheels")
    return root


def places(*modules: str) -> list[str]:
    return [file.path for file in collect(modules).files]


def test_a_single_file_travels_alone(writes: Writes, tmp_path: Path) -> None:
    writes("lonely_bundle", lonely_bundle__dot__py="x = 1\n", beside__dot__py="y = 2\n")

    found = collect(["lonely_bundle"])

    (file,) = found.files
    data = (tmp_path / "lonely_bundle.py").read_bytes()
    assert (file.path, file.size, file.sha256) == ("lonely_bundle.py", len(data), hashlib.sha256(data).hexdigest())
    assert found.sources == {file.sha256: tmp_path / "lonely_bundle.py"}


def test_a_package_travels_whole_from_its_top(package: Path) -> None:
    everything = [
        "shop/__init__.py",
        "shop/parts/__init__.py",
        "shop/parts/wheels.py",
        "shop/prices.csv",
        "shop/till.py",
    ]
    assert places("shop.parts.wheels") == sorted(everything)
    assert places("shop.parts") == places("shop") == places("shop", "shop.parts.wheels") == sorted(everything)


def test_caches_compiled_files_and_hidden_ones_stay(package: Path) -> None:
    before = places("shop")
    for place in (
        "__pycache__/till.cpython-311.pyc",
        "till.pyc",
        ".env",
        ".git/config",
        "node_modules/x.js",
        "venv/a.py",
    ):
        (package / place).parent.mkdir(parents=True, exist_ok=True)
        (package / place).write_text("secret")

    assert places("shop") == before


def test_a_link_out_of_the_package_is_refused(package: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("private")
    (package / "inside.txt").symlink_to("prices.csv")
    assert "shop/inside.txt" in places("shop")

    (package / "link.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ConfigError, match=r"link\.txt is a link that leads out of its package"):
        collect(["shop"])


def test_a_link_to_a_directory_is_refused(package: Path, tmp_path: Path) -> None:
    (package / "everything").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is a link to a directory"):
        collect(["shop"])


def test_too_many_files_are_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_FILES", 4)
    with pytest.raises(ConfigError, match="more than 4 files"):
        collect(["shop"])


def test_too_many_bytes_are_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BYTES", 60)
    with pytest.raises(ConfigError, match="more than 0 MiB"):
        collect(["shop"])


def test_the_script_travels_under_its_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("def f(): return 1\n")
    main = ModuleType("__main__")
    main.__file__ = str(script)
    main.__spec__ = None
    exec(compile(script.read_text(), script, "exec"), main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(pickling, "TRAVELS", {})

    assert home_of(main.f) == Home("script", "f")
    assert places("__main__") == ["script.py"]
    App("a").function()(main.f)
    assert pickling.TRAVELS == {"__main__": "script"}


def test_a_session_without_a_file_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    exec("def f(n): return n + 1", main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    app = App("notebook")
    app.function()(main.f)

    manifest = app.manifest()

    (spec,) = manifest.functions
    assert (spec.module, spec.qualname, manifest.files) == ("", "", [])
    data: Any = app._bundled()[1][str(spec.payload)]
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (spec.payload, spec.payload_size)
    assert pickle.loads(data)(4) == 5


def test_a_function_inside_a_function_travels_by_value() -> None:
    def inner() -> None: ...

    assert home_of(inner) == Home()
    assert home_of(places) == Home(__name__, "places")


def test_origins_are_single_files_and_whole_packages() -> None:
    inner = importlib.import_module("email.mime.text")
    assert bundle.origins(["email.mime.text", "email.header", "this_is_no_module", "apothic.clock"]) == [
        Path(str(inner.__file__)).parents[1]
    ]
    single = Path(str(tomllib.__file__)).parent
    assert bundle.origins(["tomllib", "textwrap"]) == sorted([single, Path(textwrap.__file__)])
    assert list(bundle.files_of(Path(textwrap.__file__))) == [Path(textwrap.__file__)]
    assert Path(str(inner.__file__)) in set(bundle.files_of(Path(str(inner.__file__)).parents[1]))
