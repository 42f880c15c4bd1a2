"""A page's fences: what each is, and what its info string says about it.

What a reader sees in the page is the convention:

    ```python NAME.py     a file: saved under that name, not run
    ```python             a program: saved under a name of its own and run; it must exit with 0
    ```console            commands after `$ `, typed into one shell that lives as long as the page; below each, what
                          it prints (stdout and stderr as a terminal mixes them)
    ```sh                 lines for that same shell; each must exit with 0
    ```text               what the `python` or `sh` fence before it prints

`not-run` in the info string says that a fence is for reading only. Other languages are not looked at. In expected
output `…` stands for anything; ids, times, ports, processes and directories are compared as such (see `likeness`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_ALIKE = (
    (re.compile(r"\b(app|job|dep|fn|agt|ctr|key)_[0-9a-hjkmnp-tv-z]{26}\b"), r"<\1>"),
    (re.compile(r"\bapothic_(key|agent|job)_[0-9a-z_]+"), r"apothic_\1_<secret>"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "<time>"),
    (re.compile(r"\b1[789]\d{8}(\.\d+)?\b"), "<seconds>"),
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), "<address>"),
    (re.compile(r"\bprocess \d+"), "process <pid>"),
    (re.compile(r'"pid":\s?\d+'), '"pid":<pid>'),
    (re.compile(r"/[^\s\"']*/(?=(?:[\w-]+\.py|\.apothic\b))"), "<folder>/"),
    (re.compile(r"~/(?=\.apothic\b)"), "<folder>/"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<sha256>"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass(frozen=True)
class Fence:
    """One fence of a page; `line` is that of its first line of content."""

    page: Path
    line: int
    language: str
    words: tuple[str, ...]
    body: str

    @property
    def place(self) -> str:
        """Return where it is, as editors and terminals read it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether it is a test."""
        return "not-run" not in self.words

    @property
    def file(self) -> str | None:
        """Return the name it is saved under, if it names one."""
        return next((word for word in self.words if "." in word), None)

    def commands(self) -> list[tuple[str, str]]:
        """Return the commands of a console fence, each with what is shown below it."""
        found: list[tuple[str, str]] = []
        goes_on = False
        for line in self.body.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            elif goes_on:
                found[-1] = (f"{found[-1][0]}\n{line}", "")
            else:
                found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
                continue
            goes_on = line.endswith("\\")
        return found


def fences(page: Path) -> list[Fence]:
    """Return the fences of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        line = text.count("\n", 0, match.start()) + 2
        found.append(Fence(page, line, language, tuple(words), match["body"]))
    return found


def likeness(text: str) -> str:
    """Return text with everything replaced that is another in each run."""
    for pattern, instead in _ALIKE:
        text = pattern.sub(instead, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def agree(expected: str, got: str) -> bool:
    """Tell whether output is what a page shows."""
    parts = (re.escape(part) for part in likeness(expected).split("…"))
    return re.fullmatch(".*?".join(parts), likeness(got), re.DOTALL) is not None
