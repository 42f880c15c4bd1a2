"""Every file of examples/ runs; the demo is run as a person runs it, and cleans up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import rig
from pages import ROOT, agree
from rig import Server, leftovers
from terminal import environment

DEMOS = {
    "stdlib_survey": {"demo.py", "survey.py", "attach.py"},  # the demo imports one and starts the other
    "token_stream": {"demo.py", "tokens.py", "reader.py"},
}
# What each says when it is run, deploying itself and asking its own service.
SERVICES = {
    "json_endpoint.py": '200 {"customer":"ada","total":10.0,"currency":"SEK"}',
    "token_stream.py": "text/plain; charset=utf-8 one two three\ndata: one data: two data: three",
    "fastapi_chat.py": ("1: hello\n2: is anybody here?\n['hello', 'is anybody here?']\nthe API at chat/web/ has /said"),
    "flask_notes.py": (
        "/notes/site/ <form method=post action=/notes/site/add><input name=note></form>\n<p>buy &lt;tea&gt;"
    ),
    "django_admin.py": (
        "/django/site/static/admin/css/base.css text/css\n/django/site/admin/ Site administration | Django site admin"
    ),
    "file_server.py": 'SimpleHTTP/… s = """Gur Mra bs Clguba, ol Gvz Crgref',
}


def made(target: str, home: Path) -> str:
    """Make a target, as a person does; return what it printed."""
    # The virtual environment is the one that runs this; it is not made again here.
    command = ["make", "--no-print-directory", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed", target]
    ran = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def check_nothing_is_left(said: str, folder: str) -> None:
    found = re.search(rf"{re.escape(str(ROOT))}/data/{folder}-\d+", said.replace("\n", ""))
    assert found is not None, said
    assert not Path(found[0]).exists()
    _, left = psutil.wait_procs(leftovers(Path(found[0])), timeout=10)
    assert left == []


def test_the_demo_of_a_stream_loses_nothing_to_two_kills_and_leaves_nothing(tmp_path: Path) -> None:
    said = made("demo-stream", tmp_path)
    produced, received = (re.search(rf"{word} ([\d,]+) items", said) for word in ("produced", "received"))
    assert produced is not None and received is not None and produced[1] == received[1]
    assert said.count("kill -9") == 2 and "the same fingerprint: True" in said and "none missing, none twice" in said
    check_nothing_is_left(said, "demo-stream")


def test_the_demo_runs_and_leaves_nothing(tmp_path: Path) -> None:
    said = made("demo", tmp_path)
    measured = re.search(r"measured (\d+) files; 1 failed", said)
    assert measured is not None and int(measured[1]) > 300
    assert "broken_on_purpose.py" in said and "SyntaxError" in said
    assert re.search(r"process \d+ saw \d+ lines and the end: \d+ rows", said) is not None
    assert "done in" in said and re.search(r"status +succeeded", said) is not None
    check_nothing_is_left(said, "demo")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_deployed_and_answers(server: Server, name: str) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "services" / name)], cwd=server.home,
        env=rig.environment(server.data_dir, server.home), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr + server.log()
    assert agree(SERVICES[name], ran.stdout), ran.stdout


def test_no_example_is_forgotten() -> None:
    found = {str(path.relative_to(ROOT / "examples")) for path in (ROOT / "examples").rglob("*.py")}
    assert found == {f"{folder}/{name}" for folder, names in {**DEMOS, "services": SERVICES}.items() for name in names}
