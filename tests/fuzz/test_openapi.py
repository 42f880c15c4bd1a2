"""Schemathesis over /openapi.json of a real server: whatever is asked, the answer is one that the document names."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzground import Progress, Target, cases, seed

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "ignored_auth",
)  # fmt: skip
HERE = Path(__file__).parent
ANSWER_S = 10.0
# Two would saw off the branch. Schemathesis tries what it has read in other answers, so random ids are not enough.
CONFIG = """
[parameters]
{parameters}

[[operations]]
include-operation-id = "stop_app"
parameters = {{ "path.app" = "nobody" }}

[[operations]]
include-operation-id = "revoke_key"
parameters = {{ "path.key" = "{key}" }}
"""


def explore(target: Target, folder: Path, *, aimed: bool, chosen: int, examples: int, phases: str) -> int:
    """Run schemathesis in a process of its own; return how many cases it made."""
    parameters = "\n".join(f'"path.{name}" = "{of}"' for name, of in target.ids.items()) if aimed else ""
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG.format(parameters=parameters, key=target.ids["key"]))
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run",
        f"{target.server.base_url}/openapi.json", "--header", f"Authorization: Bearer {target.key}",
        f"--seed={chosen}", f"--max-examples={examples}", f"--phases={phases}", f"--checks={','.join(CHECKS)}",
        f"--request-timeout={ANSWER_S}", "--continue-on-failure", "--suppress-health-check=all", "--no-color",
        "--generation-database=none",
    ]  # fmt: skip
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "packed_bodies", "PYTHONPATH": str(HERE)}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    made = re.search(r"([\d,]+) generated", ended.stdout)
    assert ended.returncode == 0 and made is not None, ended.stdout[-8000:] + ended.stderr[-4000:]
    return int(made[1].replace(",", ""))


def test_no_answer_is_undocumented(target: Target, tmp_path: Path) -> None:
    made = explore(target, tmp_path, aimed=True, chosen=seed(), examples=2, phases="coverage,fuzzing")
    made += explore(target, tmp_path, aimed=False, chosen=seed(), examples=2, phases="fuzzing")
    print(f"{made:,} cases")
    assert made > 500
    target.check_whole()


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_no_answer_is_undocumented_in_many_cases(target: Target, tmp_path: Path) -> None:
    chosen, progress = seed(), Progress("openapi")
    while progress.done < cases(40_000):
        aimed = chosen % 2 == 1
        progress.add(explore(target, tmp_path, aimed=aimed, chosen=chosen, examples=40, phases="coverage,fuzzing"))
        target.check_whole()
        chosen += 1
        progress.tell()
