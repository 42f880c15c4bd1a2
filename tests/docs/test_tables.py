"""The tables of docs/ say what the code says: settings, routes, errors, options, commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from pages import ROOT, agree

from apothic.cli.main import root
from apothic.cli.wording import WAITS
from apothic.config import TABLE, Setting
from apothic.control.keys import IMPLIES
from apothic.errors import ApothicError, family
from apothic.protocol.messages import CallOptions
from apothic.protocol.routes import ROUTES, Route
from apothic.protocol.specs import FunctionOptions

DOCS = ROOT / "docs"


def rows(page: str, head: str) -> list[list[str]]:
    """Return the cells of the table whose head begins so."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith(head))
    found = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def words(error: type[ApothicError]) -> str:
    return (error.__doc__ or "").strip().splitlines()[0]


def shown(setting: Setting) -> str:
    if setting.default is None:
        return "none"
    return f"`{int(setting.default) if isinstance(setting.default, bool) else setting.default}`"


def test_every_setting_is_in_the_table() -> None:
    assert rows("command-line.md", "| Setting | Variable") == [
        [f"`{line.name}`", f"`{line.variable}`", shown(line), line.audience, line.about] for line in TABLE.values()
    ]


def as_written(route: Route[Any, Any]) -> str:
    query = [name for name in (route.query if route.body else route.ask.__struct_fields__) if name not in route.in_path]
    return f"`{route.method} {route.path}{'?' if query else ''}{'&'.join(f'{name}=' for name in query)}`"


def test_every_route_is_in_the_table() -> None:
    assert rows("http.md", "| Route | Scope") == [
        [as_written(route), f"`{route.scope}`" if route.scope else "none", route.about] for route in ROUTES
    ]


def test_every_error_is_in_both_tables() -> None:
    assert rows("http.md", "| Code | Status") == [
        [f"`{error.code}`", str(error.http), words(error), f"`{error.__name__}`"] for error in family()
    ]
    assert rows("functions-and-jobs.md", "| Error | Below") == [
        [f"`{error.__name__}`", ", ".join(f"`{base.__name__}`" for base in error.__bases__), words(error)]
        for error in family()
    ]


def test_every_option_of_a_function_is_in_the_table_with_its_default() -> None:
    table = {name: row[1] for row in rows("functions-and-jobs.md", "| Option | Default") for name in row[0].split(", ")}
    plain = FunctionOptions()
    by_decorator = {"concurrency", "batching"}
    assert table == {
        f"`{name}`": f"`{getattr(plain, name)!r}`".replace(".0`", "`")
        for name in FunctionOptions.__struct_fields__
        if name not in by_decorator
    }


def test_every_option_of_a_job_is_in_the_table() -> None:
    table = {row[0].strip("`") for row in rows("functions-and-jobs.md", "| Option | What")}
    assert table == {*CallOptions.__struct_fields__, "idempotency_key"}


def test_every_scope_is_in_the_table() -> None:
    table = {row[0].strip("`") for row in rows("command-line.md", "| Scope | Opens")}
    # `blobs` comes with the others; nobody asks for it alone.
    assert {scope for scope in table if not scope.startswith("invoke:")} == set(IMPLIES)


def commands(group: click.Group, before: str) -> list[str]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += commands(command, f"{before} {name}")
        elif not command.hidden:
            found.append(f"{before} {name}")
    return found


def test_every_command_is_on_the_page() -> None:
    text = (DOCS / "command-line.md").read_text("utf-8")
    assert [name for name in commands(root, "apothic") if f"`{name}" not in text] == []


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")]), ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    for link in links:
        file, _, anchor = link.partition("#")
        there = page if not file else (page.parent / file).resolve()
        assert there.exists(), f"{page.name} links to {link}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, f"{page.name} links to {link}"


def test_an_ellipsis_stands_for_anything_and_only_that() -> None:
    assert agree("job job_01m855dne7q8dqa7617rrvxp3k is …\n", "job job_01m855ds53w43atns3f7b028te is cancelled")
    assert agree("API   http://127.0.0.1:8700", "API http://127.0.0.1:40123\n")
    assert not agree("value 5", "value 55")
    assert not agree("one\ntwo", "one\nor\ntwo")


def test_every_reason_for_which_a_job_waits_is_in_the_table() -> None:
    assert {row[0]: row[2] for row in rows("lifecycle.md", "| Reason | Status")} == {
        f"`{name}`": text for name, text in WAITS.items()
    }
