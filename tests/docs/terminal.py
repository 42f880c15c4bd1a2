"""One bash for one page: in an empty directory and an empty home, with nothing of apothic set or running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rig import end_leftovers, leftovers

_MARK = "\x1eended "
USUAL = {"base_url": "http://127.0.0.1:8700", "gateway_url": "http://127.0.0.1:8701"}


class Terminal:
    """Types commands into a shell, and reads what they print until they have ended."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.work = home / "work"
        self.work.mkdir(parents=True)
        self.data_dir = home / ".apothic" / "data"
        # README and the tutorial say `.venv/bin/python`, as it is in a clone after `make install`.
        (self.work / ".venv").symlink_to(sys.prefix)
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=self.work, env=environment(home), text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
            start_new_session=True,
        )  # fmt: skip

    def run(self, command: str) -> tuple[int, str]:
        """Run one command; return its exit status, and what it printed."""
        script = self.home / "command"
        script.write_text(self._placed(command) + "\n")
        assert self._shell.stdin is not None and self._shell.stdout is not None
        # `$?` of the command before must be there for `echo $?`, hence the subshell that ends with it.
        self._shell.stdin.write(
            f"(exit ${{_last:-0}}); . {script} </dev/null; _last=$?; printf '{_MARK}%s\\n' $_last\n"
        )
        self._shell.stdin.flush()
        printed = []
        for line in self._shell.stdout:
            before, mark, status = line.partition(_MARK)
            printed.append(before)
            if mark:
                return int(status), "".join(printed)
        raise AssertionError(f"the shell ended at: {command}")

    def _placed(self, command: str) -> str:
        """Put the addresses of the server that runs here for those of one that runs alone on its machine."""
        file = self.data_dir / "server.json"
        if not any(usual in command for usual in USUAL.values()) or not file.exists():
            return command
        told = json.loads(file.read_text())
        for name, usual in USUAL.items():
            command = command.replace(usual, told[name])
        return command

    def close(self) -> None:
        """End the shell, whatever it is at, and what it runs in the background."""
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        for stream in (self._shell.stdin, self._shell.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a user who has just installed apothic."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APOTHIC_", "PYTEST_"))}
    told = {
        "HOME": str(home),
        "PATH": f"{sys.prefix}/bin:{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",  # so that stdout and stderr come in the order in which they were written
        # `apothic up` takes 8700 and 8701 unless it is told otherwise; here several may run at a time.
        "APOTHIC_PORT": "0",
        "APOTHIC_GATEWAY_PORT": "0",
    }
    return inherited | told | more


@contextmanager
def terminal(home: Path) -> Iterator[Terminal]:
    """Open a terminal; at the end, end what it started, and see that it is gone."""
    opened = Terminal(home)
    try:
        yield opened
        status, said = opened.run("apothic down")
        assert status == 0, said
    finally:
        opened.close()
        left = leftovers(home)
        end_leftovers(home)
    assert [process.pid for process in left] == []
