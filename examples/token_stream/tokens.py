"""The app: a generator that reads the sources of Python's standard library and yields what it has counted so far."""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import apothic

app = apothic.App("token-stream")
LINES = 100  # of source, between two items
TOKEN = re.compile(r"\w+|[^\w\s]")


def text() -> str:
    """Return the largest text that every machine with Python has: the standard library's sources, joined."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "lib2to3"}
    paths = (path for path in sorted(root.rglob("*.py")) if not left_out & set(path.relative_to(root).parts))
    return "\n".join(path.read_text("utf-8", errors="replace") for path in paths)


def fingerprint(items: list[dict[str, Any]]) -> str:
    """Return a hash of items in their order: one that is missing, doubled or out of place changes it."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


@app.function(timeout_s=300, stream_window=100_000)
def count_tokens() -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Yield the counts after every few lines; return how many items that were, and their fingerprint."""
    counts: Counter[str] = Counter()
    items: list[dict[str, Any]] = []
    tokens = 0
    lines = text().splitlines(keepends=True)
    print(f"reading {len(lines):,} lines")
    for start in range(0, len(lines), LINES):
        found = TOKEN.findall("".join(lines[start : start + LINES]))
        counts.update(found)
        tokens += len(found)
        most = [list(pair) for pair in counts.most_common(3)]
        items.append({"lines": start + LINES, "tokens": tokens, "distinct": len(counts), "most": most})
        yield items[-1]
    print("read all of it")
    return {"items": len(items), "fingerprint": fingerprint(items)}
