"""Both type checkers agree with `functions.py`, and refuse exactly the lines marked in `mistakes.py`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MARKED = {
    number for number, line in enumerate((HERE / "mistakes.py").read_text().splitlines(), 1) if line.endswith("# wrong")
}


def mypy(name: str, cache: Path) -> set[int]:
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}", "--no-error-summary", name]
    environment = os.environ | {"MYPYPATH": str(ROOT / "src")}
    told = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    assert told.stderr == ""
    return {int(found[1]) for found in re.finditer(rf"^{name}:(\d+): error", told.stdout, re.MULTILINE)}


def basedpyright(name: str, folder: Path) -> set[int]:
    settings = {
        "include": [str(HERE / name)], "extraPaths": [str(ROOT / "src")], "pythonVersion": "3.11",
        "typeCheckingMode": "standard", "failOnWarnings": False,
    }  # fmt: skip
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    told = json.loads(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout)
    assert told["summary"]["filesAnalyzed"] == 1
    return {entry["range"]["start"]["line"] + 1 for entry in told["generalDiagnostics"] if entry["severity"] == "error"}


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_the_checker_agrees_with_every_assert_type(checker: object, tmp_path: Path) -> None:
    assert callable(checker)
    assert checker("functions.py", tmp_path) == set()


@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_the_checker_refuses_exactly_the_mistakes(checker: object, tmp_path: Path) -> None:
    assert callable(checker)
    assert MARKED
    assert checker("mistakes.py", tmp_path) == MARKED
