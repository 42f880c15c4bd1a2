"""SQL lives in `.sql` files: `-- name: one line of why`, then the statement."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_HEADER = re.compile(r"^-- (\w+): .*$", re.MULTILINE)


def folder() -> str:
    """Return the package's folder of SQL, by name for `importlib.resources`."""
    return "apothic.store"


def read(name: str) -> str:
    """Return the text of one file under `store/sql/`."""
    return files(folder()).joinpath("sql", *name.split("/")).read_text("utf-8")


def named(text: str) -> dict[str, str]:
    """Split a file into its named statements."""
    parts = _HEADER.split(text)
    return {name: sql.strip().rstrip(";") for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def queries() -> dict[str, str]:
    """Return every named query of `store/sql/queries/`. Raises `ValueError` when a name is given twice."""
    found: dict[str, str] = {}
    for file in sorted(files(folder()).joinpath("sql", "queries").iterdir(), key=lambda entry: entry.name):
        for name, sql in named(file.read_text("utf-8")).items():
            if name in found:
                raise ValueError(f"two queries are called {name}")
            found[name] = sql
    return found


@cache
def invariants() -> dict[str, str]:
    """Return the auditor's rules: each must return no row."""
    return named(read("invariants.sql"))


def migrations() -> list[tuple[int, str]]:
    """Return the migrations in order, as (number, SQL)."""
    found = files(folder()).joinpath("sql", "migrations").iterdir()
    return sorted((int(file.name.split("_")[0]), file.read_text("utf-8")) for file in found)
