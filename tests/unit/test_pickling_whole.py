"""What travels by value, for readers that have none of the files here."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from apothic.protocol import pickling

BESIDE = """
import json, beside_too
LIMIT = 3
class Mark(Exception):
    pass
def judge(n):
    if n > LIMIT:
        raise Mark(beside_too.double(n))
    return json.dumps(n)
"""


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "beside_too.py").write_text("def double(n):\n    return 2 * n\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("beside")
    del sys.modules["beside"], sys.modules["beside_too"]


def whole(value: Any) -> bytes:
    sink = io.BytesIO()
    pickling.dump(value, sink, "value", whole=True)
    return sink.getvalue()


def test_modules_beside_the_script_travel_whole_and_installed_ones_do_not(beside: Any, tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(whole(beside.judge))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))(2), 'beside' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "pickle")]
    assert subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout == "2 False\n"

    assert pickling.load(io.BytesIO(whole(json.dumps)), None, "value") is json.dumps
    assert pickling.load(io.BytesIO(whole(pytest.raises)), None, "value") is pytest.raises
    assert pickling.load(io.BytesIO(whole(beside.json)), None, "value") is json


def test_classes_come_back_as_themselves_and_tracebacks_name_the_file(beside: Any) -> None:
    judge = pickling.load(io.BytesIO(whole(beside.judge)), None, "value")
    assert judge is not beside.judge
    with pytest.raises(beside.Mark, match="8") as caught:
        judge(4)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].filename == beside.__file__


def test_what_is_installed_is_a_matter_of_its_file(beside: Any) -> None:
    installed = [name for name in ("json", "pytest", "sys", "apothic", "beside", "__main__", __name__)
                 if pickling.is_installed(name)]  # fmt: skip
    assert installed == ["json", "pytest", "sys", "apothic"]
