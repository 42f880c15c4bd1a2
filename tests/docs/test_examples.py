"""Every file of examples/ runs; the demo is run as a person runs it, and cleans up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
from pages import ROOT
from rig import leftovers
from terminal import environment

DEMO = ROOT / "examples" / "stdlib_survey"


def test_the_demo_runs_and_leaves_nothing(tmp_path: Path) -> None:
    # The virtual environment is the one that runs this; it is not made again here.
    command = ["make", "--no-print-directory", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed", "demo"]
    ran = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = ran.stdout
    measured = re.search(r"measured (\d+) files; 1 failed", said)
    assert measured is not None and int(measured[1]) > 300
    assert "broken_on_purpose.py" in said and "SyntaxError" in said
    assert re.search(r"process \d+ saw \d+ lines and the end: \d+ rows", said) is not None
    assert "done in" in said and re.search(r"status +succeeded", said) is not None
    folder = re.search(rf"{re.escape(str(ROOT))}/data/demo-\d+", said.replace("\n", ""))
    assert folder is not None, said
    assert not Path(folder[0]).exists()
    _, left = psutil.wait_procs(leftovers(Path(folder[0])), timeout=10)
    assert left == []


def test_no_example_is_forgotten() -> None:
    used = {"demo.py", "survey.py", "attach.py"}  # the demo imports one and starts the other
    found = {str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*.py")}
    assert found == {f"{DEMO.name}/{name}" for name in used}
