"""The command line before any server: exit status, hints, what it imports, how it reads the user's file."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import psutil
import pytest

from apothic import errors
from apothic.cli import configuration, local
from apothic.cli.main import main, root, status_of
from apothic.cli.source import UserCodeError, load


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("APOTHIC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += every_command(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


def test_the_commands_are_those_of_the_contract() -> None:
    assert {" ".join(path) for path in every_command(root)} == {
        "server", "up", "down", "status", "agent", "deploy", "serve", "run", "call", "app list", "app show", "app stop",
        "app rollback", "app logs", "job list", "job show", "job logs", "job watch", "job wait", "job cancel",
        "job story", "job retry", "attach", "key create", "key list", "key revoke", "config show", "doctor",
    }  # fmt: skip


def test_a_command_is_imported_without_the_others() -> None:
    code = "import sys\nfrom apothic.cli.main import main\nmain(['agent', '--help'])\nprint(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = {name for name in told.split() if name.startswith("apothic.cli.")}
    assert "apothic.cli.server" in loaded and loaded.isdisjoint({f"apothic.cli.{name}" for name in ("apps", "jobs")})


@pytest.mark.parametrize("path", every_command(root), ids=" ".join)
def test_every_command_takes_json_and_has_help(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown and "--traceback" in shown


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["jbo"], "did you mean apothic job?"),
        (["job", "lst"], "did you mean apothic job list?"),
        (["job", "show"], "apothic job show --help"),
        (["job", "list", "--limit", "many"], "apothic job list --help"),
        (["job", "list", "--limt", "1"], "did you mean --limit?"),
        (["call", "app", "f", "--kw", "novalue"], "apothic call --help"),
        (["call", "app", "f", "--knw", "a=b"], "apothic call --help"),
    ],
)
def test_a_command_written_wrongly(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and f"hint: {hint}" in err and err.count("\n") == 2


def test_plurals_are_aliases(capsys: pytest.CaptureFixture[str]) -> None:
    for plural in ("jobs", "apps", "keys"):
        assert main([plural, "list", "--help"]) == 0


def test_statuses() -> None:
    by_status = {cls: status_of(cls("x")) for cls in errors.family()}
    assert {cls.__name__ for cls, status in by_status.items() if status == 3} == {
        "ApothicError", "ServerUnavailableError", "StorageFullError", "VersionMismatchError",
    }  # fmt: skip
    assert set(by_status.values()) == {1, 3}


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(configuration.config.commands["show"], "callback", interrupt)  # type: ignore[attr-defined]
    monkeypatch.setattr("apothic.cli.configuration.settings", lambda: interrupt())
    assert main(["config", "show"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_nobody_foresaw_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("apothic.cli.configuration.settings", lambda: 1 / 0)
    assert main(["config", "show"]) == 1
    assert capsys.readouterr().err.startswith("error: ZeroDivisionError: division by zero\nhint: ")
    assert main(["config", "show", "--traceback"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["config", "show", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "internal"


def test_config_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("APOTHIC_LEASE_S", "5")
    monkeypatch.setenv("APOTHIC_API_KEY", "apothic_key_" + "s" * 40)
    assert main(["config", "show", "--json", "--port", "1"]) == 0
    shown = {line["name"]: line for line in json.loads(capsys.readouterr().out)["settings"]}
    assert (shown["port"]["value"], shown["port"]["source"]) == (1, "argument port")
    assert (shown["lease_s"]["value"], shown["lease_s"]["source"]) == (5.0, "variable APOTHIC_LEASE_S")
    assert (shown["data_dir"]["value"], shown["data_dir"]["source"]) == (str(tmp_path / ".apothic/data"), "default")
    assert "sssss" not in str(shown)
    assert main(["config", "show"]) == 0
    assert "variable APOTHIC_LEASE_S" in capsys.readouterr().out


def test_a_wrong_setting_is_a_user_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("APOTHIC_PORT", "http")
    assert main(["config", "show", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "config"
    assert err.startswith("error: port cannot be 'http' (variable APOTHIC_PORT)\nhint: ")


def test_help_is_light() -> None:
    heavy = ("aiohttp", "asyncio", "uvicorn", "sqlite3", "rich", "psutil", "msgspec", "cloudpickle")
    script = f"""
import sys
from apothic.cli.main import main
assert main(["--help"]) == 0
print([name for name in {heavy!r} if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


# --- the user's file --------------------------------------------------------------------------------------------


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.fixture
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("_own_modules")
def test_a_file_is_imported_under_its_own_name_and_sees_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path, "beside_it.py", "value = 3")
    source = load(written(tmp_path, "alone.py", "import beside_it\nname = __name__\nvalue = beside_it.value") + "::f")
    assert (source.module.name, source.module.value, source.name) == ("alone", 3, "f")


@pytest.mark.usefixtures("_own_modules")
def test_a_file_of_a_package_is_imported_as_part_of_it(tmp_path: Path) -> None:
    written(tmp_path, "shop_pkg/__init__.py", "")
    written(tmp_path, "shop_pkg/prices.py", "price = 7")
    source = load(written(tmp_path, "shop_pkg/app.py", "from .prices import price\nname = __name__"))
    assert (source.module.name, source.module.price) == ("shop_pkg.app", 7)


@pytest.mark.parametrize("file", ["nowhere.py", "folder", "text.txt", "not-a-name.py"])
@pytest.mark.usefixtures("_own_modules")
def test_what_is_no_python_file(tmp_path: Path, file: str) -> None:
    (tmp_path / "folder").mkdir()
    written(tmp_path, "text.txt", "")
    written(tmp_path, "not-a-name.py", "")
    with pytest.raises(errors.ConfigError) as caught:
        load(str(tmp_path / file))
    assert file in caught.value.message and caught.value.hint


@pytest.mark.usefixtures("_own_modules")
def test_a_file_that_raises_shows_the_users_frames_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "broken_app.py", "def f():\n    return 1 / 0\n\nf()\n")
    with pytest.raises(UserCodeError):
        load(path)
    assert main(["deploy", path]) == 1
    err = capsys.readouterr().err
    assert f'File "{path}", line 2, in f' in err and "return 1 / 0" in err
    assert "source.py" not in err and "importlib" not in err
    assert "\nerror: ZeroDivisionError: division by zero\nhint: your own code" in err


@pytest.mark.usefixtures("_own_modules")
def test_a_wrong_option_names_the_line(tmp_path: Path) -> None:
    text = "from apothic.protocol.specs import FunctionOptions\n\nFunctionOptions(cpu=0)\n"
    with pytest.raises(errors.ConfigError) as caught:
        load(written(tmp_path, "wrong_option.py", text))
    assert caught.value.message == "cpu cannot be 0 (wrong_option.py, line 3)"


@pytest.mark.usefixtures("_own_modules")
def test_a_file_called_like_a_module_in_use(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="json"):
        load(written(tmp_path, "json.py", ""))


# --- this machine -----------------------------------------------------------------------------------------------


def test_the_holder_of_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "server.lock"
    assert local.holder(lock) is None
    with lock.open("w") as file:
        assert local.holder(lock) is None
        fcntl.flock(file, fcntl.LOCK_EX)
        assert local.holder(lock) == os.getpid()
    assert local.holder(lock) is None


def test_a_server_file_without_its_lock_is_old_news(tmp_path: Path) -> None:
    told = {"base_url": "http://x", "gateway_url": None, "data_dir": str(tmp_path), "pid": os.getpid(), "version": "1"}
    (tmp_path / "server.json").write_text(json.dumps(told))
    assert local.running(tmp_path) is None
    with (tmp_path / "server.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert local.running(tmp_path) == local.Running(**told)


def test_the_holder_of_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert f"(pid {os.getpid()})" in local.port_holder(listening.getsockname()[1])


def test_ending_a_process_waits_until_it_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin
    with process.stdin:
        local.end(process.pid, 30)
        # Its parent, we, has not asked for its status: that it has ended is all there is to wait for.
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
        local.end(process.pid, 30)
    assert process.wait() == -signal.SIGTERM
    local.end(process.pid, 30)


def test_the_first_document_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('{"old": 1}\n')
    offset = log.stat().st_size
    assert local.first_document(log, offset, lambda: False, 30) is None
    with log.open("a") as file:
        file.write('warning\n{"pid": 1}\n{"half')
    assert local.first_document(log, offset, lambda: True, 30) == {"pid": 1}


def test_a_data_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ConfigError, match="cannot be written"):
        local.make_private(tmp_path / "file" / "data")
    local.make_private(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
