"""Every fence of README.md and of docs/ does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Fence, agree, fences, likeness
from terminal import Terminal, terminal


def shown(fence: Fence, command: str, expected: str, got: str) -> str:
    return f"{fence.place}\n$ {command}\n--- the page says\n{likeness(expected)}\n--- it printed\n{likeness(got)}\n"


def follow(screen: Terminal, fence: Fence, before: Fence | None, printed: str) -> str:
    """Do what one fence says; return what it printed."""
    if fence.language == "console":
        for command, expected in fence.commands():
            _, got = screen.run(command)
            assert agree(expected, got), shown(fence, command, expected, got)
    elif fence.language == "sh":
        said = ""
        for command in re.sub(r"\\\n", " ", fence.body).splitlines():
            status, got = screen.run(command)
            assert status == 0, shown(fence, command, "", got)
            said += got
        return said
    elif fence.language == "python":
        file = screen.work / (fence.file or f"line_{fence.line}.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(fence.body)
        if fence.file is None:
            status, got = screen.run(f"python {file.name}")
            assert status == 0, shown(fence, f"python {file.name}", "", got)
            return got
    elif fence.language == "text" and before is not None and before.language in ("python", "sh"):
        assert before.file is None, f"{fence.place}: a file that is not run prints nothing; use a console fence"
        assert agree(fence.body, without_start(printed)), shown(fence, before.place, fence.body, printed)
    return ""


def without_start(printed: str) -> str:
    """Leave out the one line that says that a server was started: which fence is the first one may change."""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("apothic: started a "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_does_what_it_says(page: Path, tmp_path: Path) -> None:
    runnable = [fence for fence in fences(page) if fence.is_run]
    with terminal(tmp_path / "home") as screen:
        before, printed = None, ""
        for fence in runnable:
            printed = follow(screen, fence, before, printed)
            before = fence


def test_what_is_not_run_is_little() -> None:
    left_out = [fence.place for page in PAGES for fence in fences(page) if not fence.is_run]
    assert len(left_out) <= 8, left_out
