from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apothic.protocol import values
from apothic.protocol.session import Packed
from apothic.protocol.values import (
    unpack,
)

LIMIT = 1 << 30


APP = """
import enum, sys
from dataclasses import dataclass
from pathlib import Path
from apothic.protocol import values

@dataclass
class Point:
    x: int
    class Inner:
        pass

class Color(enum.Enum):
    RED = 1

class Trouble(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")

def double(n):
    return 2 * n

if __name__ == "__main__":
    import msgspec
    from apothic.protocol.failures import rebuild
    from apothic.protocol.messages import Failure
    from apothic.protocol.session import Packed
    here = Path(sys.argv[2])
    if sys.argv[1] == "send":
        values.TRAVELS["__main__"] = "app"
        sent = (Point(1), Color.RED, double, Point.Inner, lambda n: double(n) + 1, sys.modules["__main__"])
        packed = values.pack_arguments(sent, {}, payload_limit=10**6).packed
        assert packed.header.modules == {"app": ""}, packed.header
        again, _ = values.unpack_arguments(packed)
        assert again[0] == sent[0] and again[:4] == sent[:4] and again[5] is sent[5]
        (here / "there").write_bytes(msgspec.msgpack.encode(packed))
    else:
        values.TRAVELS["__main__"] = "app"
        packed = msgspec.msgpack.decode((here / "back").read_bytes(), type=Packed)
        point, color, function, inner, trouble, module = values.unpack(packed)
        assert type(point) is Point and point.x == 2 and color is Color.RED and function is double
        assert inner is Point.Inner and trouble is Trouble
        assert module is sys.modules["__main__"]
        failure = msgspec.msgpack.decode((here / "failure").read_bytes(), type=Failure)
        again = rebuild(failure, "job_1")
        assert type(again) is Trouble and str(again) == "c d", repr(again)
        assert "app" not in sys.modules
        print("came back")
"""

CONTAINER = """
import sys
from pathlib import Path
import msgspec
sys.path.insert(0, sys.argv[1])
import app
from apothic.protocol import values
from apothic.protocol.failures import describe
from apothic.protocol.session import Packed
here = Path(sys.argv[1])
packed = msgspec.msgpack.decode((here / "there").read_bytes(), type=Packed)
(point, color, double, inner, by_value, module), _ = values.unpack_arguments(packed)
assert type(point) is app.Point and color is app.Color.RED and double is app.double and inner is app.Point.Inner
assert by_value(4) == 9 and module is app
result = (app.Point(2), color, double, inner, app.Trouble, app)
(here / "back").write_bytes(msgspec.msgpack.encode(values.pack(result, payload_limit=10**6).packed))
try:
    raise app.Trouble("c", "d")
except app.Trouble as error:
    (here / "failure").write_bytes(msgspec.msgpack.encode(describe(error, attempt=1)))
"""


def run(*command: str) -> str:
    ran = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_classes_of_a_script_are_the_containers_there_and_the_scripts_here(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "container.py").write_text(CONTAINER)
    script, folder = str(tmp_path / "app.py"), str(tmp_path)

    run(script, "send", folder)
    run("-P", str(tmp_path / "container.py"), folder)

    assert run("-P", script, "receive", folder) == "came back\n"


def test_what_only_the_script_has_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError, match="json defines no Gone; what stands under `if __name__"):
        values.locate("json", "Gone")
    assert values.locate("json", "JSONDecoder.decode") is json.JSONDecoder.decode
    monkeypatch.setitem(values.TRAVELS, "json", "remote_json")
    assert values.locate("remote_json", "loads") is json.loads


def test_a_function_of_an_interactive_session_travels_by_value() -> None:
    code = (
        "import sys\nfrom apothic.protocol import values\n"
        "class Local:\n    n = 5\n"
        "def work(k): return Local.n + k\n"
        "packed = values.pack(work, payload_limit=10**6).packed\n"
        "sys.stdout.write(packed.data.hex())\n"
    )

    data = bytes.fromhex(run("-c", code))

    assert unpack(Packed(encoding="pickle", data=data, size=len(data)))(2) == 7
