"""An app that measures Python source: one job a file, and one job that sums up."""

from __future__ import annotations

import ast
import time
from typing import TypedDict

import apothic

app = apothic.App("stdlib-survey")


class Source(TypedDict):
    """One file."""

    path: str
    text: str


class Measures(TypedDict):
    """What is counted in one file."""

    path: str
    lines: int
    functions: int
    classes: int
    longest: int
    longest_name: str
    documented: int


@app.function(max_containers=2, memory_mb=512)
def measure(source: Source) -> Measures:
    """Count the functions and classes of one file, its longest function, and how much has a docstring."""
    path, text = source["path"], source["text"]
    tree = ast.parse(text, filename=path)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    longest = max(functions, key=length, default=None)
    return {
        "path": path,
        "lines": text.count("\n") + 1,
        "functions": len(functions),
        "classes": len(classes),
        "longest": length(longest) if longest is not None else 0,
        "longest_name": longest.name if longest is not None else "",
        "documented": sum(ast.get_docstring(node) is not None for node in [*functions, *classes]),
    }


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


@app.function(memory_mb=512)
def summarise(measures: list[Measures]) -> list[dict[str, object]]:
    """Sum up by package; print a line for each, so that there is something to follow."""
    packages: dict[str, list[Measures]] = {}
    for each in measures:
        first = each["path"].split("/")[0]
        packages.setdefault(first if "/" in each["path"] else "(modules)", []).append(each)
    rows = []
    for name, files in sorted(packages.items(), key=lambda pair: -sum(each["lines"] for each in pair[1])):
        named = sum(each["functions"] + each["classes"] for each in files)
        longest = max(files, key=lambda each: each["longest"])
        rows.append(
            {
                "package": name,
                "files": len(files),
                "lines": sum(each["lines"] for each in files),
                "functions": sum(each["functions"] for each in files),
                "classes": sum(each["classes"] for each in files),
                "longest function": f"{longest['longest_name']} ({longest['longest']})",
                "docstrings": f"{100 * sum(each['documented'] for each in files) // max(named, 1)} %",
            }
        )
        print(f"{name}: {len(files)} files, {rows[-1]['lines']:,} lines")
        time.sleep(0.02)  # slow enough to be watched from elsewhere
    return rows
