"""What is to be done must fit what happened."""

from __future__ import annotations

import subprocess
import sys

import pytest

from apothic.client.deployment import _failed
from apothic.errors import SerializationError
from apothic.protocol.failures import describe
from apothic.protocol.messages import DeploymentView, Failure


@pytest.mark.parametrize(
    ("failure", "hint"),
    [
        (Failure(kind="startup", type="ModuleNotFoundError", message="no x"), "must import"),
        (Failure(kind="unsatisfiable", type="Unsatisfiable", message="no gpu"), "gpu="),
        (Failure(kind="startup", type="apothic.errors.ConfigError", message="not yet"), "leave that function out"),
        (Failure(kind="startup", type="apothic.errors.ConfigError", message="no app\nhint: return it"), "return it"),
        (Failure(kind="startup", type="RuntimeError", message="no database"), "correct what its start-up log"),
        (Failure(kind="startup", type="KeyError", message="'HOME'"), "correct what its start-up log"),
    ],
)
def test_a_deployment_that_did_not_start_says_what_to_do(failure: Failure, hint: str) -> None:
    view = DeploymentView(id="dep_1", app="a", status="failed", content_hash="", created_at=0.0, failure=failure)
    error = _failed(view)
    assert hint in error.hint
    assert "hint" not in error.message


def test_a_failure_has_the_message_of_our_errors_without_their_hint() -> None:
    failure = describe(SerializationError("a lock cannot travel", hint="return data"), attempt=1, kind="serialization")
    assert failure.message == "a lock cannot travel"


def test_threads_that_need_the_http_library_at_once_all_get_it_whole() -> None:
    code = (
        "import asyncio; from concurrent.futures import ThreadPoolExecutor; from apothic import transport\n"
        "found = lambda _: asyncio.run(transport.library()).ClientSession\n"
        "with ThreadPoolExecutor(8) as pool: assert len(set(pool.map(found, range(8)))) == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
