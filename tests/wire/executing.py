"""What the tests of the executor share: a call that can be held, and programs of a user's."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rig
from rig import Server, environment

SMALL: dict[str, Any] = {"cpu": 0.1, "memory_mb": 128}
DEADLINE_S = 60.0


def held(gate: Path) -> str:
    while not gate.exists():
        time.sleep(0.01)
    return "let go"


def until(true: Callable[[], bool]) -> None:
    rig.until(true, DEADLINE_S)


class Script:
    """A program of a user's, in a process of its own."""

    def __init__(self, server: Server, folder: Path, text: str) -> None:
        key = (server.data_dir / "admin.key").read_text().strip()
        (folder / "script.py").write_text(textwrap.dedent(text))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(folder / "script.py")], cwd=folder,
            env=environment(server.data_dir, folder, APOTHIC_BASE_URL=server.base_url, APOTHIC_API_KEY=key),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def end(self) -> tuple[str, str]:
        return self.process.communicate(timeout=DEADLINE_S)
