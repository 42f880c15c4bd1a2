"""The rules of the house that can be checked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import apothic
from apothic.errors import family
from apothic.protocol.routes import ROUTES
from apothic.store.queries import queries

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "apothic").rglob("*.py"))
ALL = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))]
REFUSED_NAMES = {"utils", "helpers", "common", "manager", "handler", "base", "core", "misc"}


def lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def test_no_file_is_over_500_lines() -> None:
    assert {str(path.relative_to(ROOT)): lines(path) for path in ALL if lines(path) > 500} == {}


def test_no_function_is_over_60_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in ALL
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or node.lineno) - node.lineno + 1 > 60
    ]
    assert long == []


def test_the_median_file_is_about_150_lines() -> None:
    counts = sorted(lines(path) for path in SOURCES if path.name != "__init__.py")
    assert counts[len(counts) // 2] <= 180


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [path for path in SOURCES if path.stem in REFUSED_NAMES or path.parent.name in REFUSED_NAMES] == []


def test_only_render_prints() -> None:
    printing = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert [name for name in printing if not name.endswith("cli/render.py")] == []


def test_the_public_names_are_these() -> None:
    assert apothic.__all__ == [
        "ApothicError", "App", "AppManifest", "BatchingSpec", "ConcurrencySpec", "ControlPlaneClient", "Cron",
        "CurrentJob", "Executor", "Function", "FunctionOptions", "Job", "JobEndEvent", "JobErrorEvent", "JobLogEvent",
        "JobResetEvent", "JobResultEvent", "JobSnapshotEvent", "JobStatusEvent", "JobStreamCheckpoint",
        "JobStreamCursor", "JobStreamEvent", "JobStreamItemEvent", "JobStreamResetError", "LocalEntrypoint", "Period",
        "RemoteApp", "RemoteFunction", "Response", "Retries", "__version__", "batched", "concurrent",
        "current_batch", "current_job", "errors",
    ]  # fmt: skip
    for name in apothic.__all__:
        assert getattr(apothic, name) is not None


def test_the_version_is_that_of_the_project() -> None:
    written = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert written is not None and written[1] == apothic.__version__


def test_importing_apothic_loads_no_server_part() -> None:
    code = "import sys, apothic; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"starlette", "uvicorn", "uvloop", "sqlite3", "aiohttp", "httpx", "websockets", "rich", "click", "asyncio"}
    assert heavy & set(loaded) == set()


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in family()]
    assert sorted(codes) == sorted(set(codes))


def test_every_route_is_answered_exactly_once() -> None:
    from apothic.control.plane import Plane

    assert all(callable(getattr(Plane, route.name)) for route in ROUTES)
    lines_of_routes = [(route.method, re.sub(r"\{\w+\}", "{}", route.path)) for route in ROUTES]
    assert len(lines_of_routes) == len(set(lines_of_routes))


def test_every_query_is_used_and_every_used_query_is_there() -> None:
    used: set[str] = set()
    for path in (ROOT / "src" / "apothic" / "store").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr in ("run", "one", "all", "many", "each") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    used.add(first.value)
    assert used == set(queries())


def test_nothing_speaks_of_another_projects_package() -> None:
    wrong = re.compile(r"pip install apothic(?!-)")
    pages = [*ALL, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    assert [page for page in pages if page != Path(__file__) and wrong.search(page.read_text("utf-8"))] == []
