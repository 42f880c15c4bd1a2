"""Settings: where each comes from, in which order, and what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apothic.config import TABLE, Settings, load
from apothic.errors import ConfigError

Loads = Callable[..., Settings]


@pytest.fixture
def loads(tmp_path: Path) -> Loads:
    for name in ("project", "home/.apothic"):
        (tmp_path / name).mkdir(parents=True)

    def settle(environ: dict[str, str] | None = None, **overrides: Any) -> Settings:
        return load(overrides, environ=environ or {}, cwd=tmp_path / "project", home=tmp_path / "home")

    return settle


def write_project(root: Path, text: str, *, where: str = "project") -> Path:
    path = root / where / "pyproject.toml"
    path.write_text(text)
    return path


def write_profiles(root: Path, text: str, *, mode: int = 0o600) -> Path:
    path = root / "home/.apothic/config.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def refused(loads: Loads, *words: str, environ: dict[str, str] | None = None, **overrides: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loads(environ, **overrides)
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_defaults(loads: Loads, tmp_path: Path) -> None:
    settings = loads()
    assert {name: getattr(settings, name) for name in TABLE} == {
        "host": "127.0.0.1", "port": 8700, "gateway_port": 8701, "gateway_url": None,
        "data_dir": tmp_path / "home/.apothic/data", "lease_s": 30.0, "grace_s": 10.0,
        "startup_timeout_s": 300.0, "payload_limit": 2 << 30,
        "inline_limit": 64 << 10, "retention_days": 7.0, "disk_ceiling": None, "durability": "full",
        "streams_max": 10_000, "max_wait_s": 60.0, "base_url": None, "api_key": None, "autostart": True,
        "profile": "default", "config_path": tmp_path / "home/.apothic/config.toml",
    }  # fmt: skip
    assert {settings.source(name) for name in TABLE} == {"default"}
    with pytest.raises(KeyError):
        settings.source("prot")


def test_every_setting_has_a_variable_and_a_help_text() -> None:
    assert TABLE["data_dir"].variable == "APOTHIC_DATA_DIR"
    assert all(line.about and line.audience in ("server", "client", "both") for line in TABLE.values())


def test_made_directly_the_defaults_hold(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert (settings.port, settings.durability, settings.source("port")) == (8700, "full", "default")
    with pytest.raises(TypeError):
        Settings()  # type: ignore[call-arg]


def test_the_order_of_places(loads: Loads, tmp_path: Path) -> None:
    profiles = write_profiles(tmp_path, "[default]\nport = 1\n")
    assert (loads().port, loads().source("port")) == (1, f"profile default in {profiles}")
    project = write_project(tmp_path, "[tool.apothic]\nport = 2\n")
    assert (loads().port, loads().source("port")) == (2, f"project file {project}")
    variable = {"APOTHIC_PORT": "3"}
    assert (loads(variable).port, loads(variable).source("port")) == (3, "variable APOTHIC_PORT")
    settings = loads(variable, port=4)
    assert (settings.port, settings.source("port"), settings.source("host")) == (4, "argument port", "default")


def test_what_is_not_given_or_empty_does_not_count(loads: Loads) -> None:
    settings = loads({"APOTHIC_PORT": ""}, port=None)
    assert (settings.port, settings.source("port")) == (8700, "default")


def test_variables_that_are_no_settings_are_left_alone(loads: Loads) -> None:
    assert loads({"APOTHIC_PROBE": "commit.after=exit", "PORT": "1"}).port == 8700


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("payload_limit", "2GiB", 2 << 30),
        ("payload_limit", "64kib", 65_536),
        ("payload_limit", "1.5 MB", 1_500_000),
        ("inline_limit", "1000", 1000),
        ("inline_limit", "12B", 12),
        ("disk_ceiling", "1TiB", 1 << 40),
        ("lease_s", "0.5", 0.5),
        ("autostart", "0", False),
        ("autostart", "true", True),
        ("durability", "fast", "fast"),
        ("base_url", "https://jobs.example.org/", "https://jobs.example.org"),
    ],
)
def test_values_as_text(loads: Loads, name: str, text: str, value: Any) -> None:
    got = getattr(loads({TABLE[name].variable: text}), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("port", ["65536", "-1", "x", "1.5", 1.5, True]),
        ("lease_s", ["0", "nan", "inf", "soon", True]),
        ("payload_limit", ["2 gigs", "-1", "GiB", -1, 1.5, True]),
        ("durability", ["none", "FULL", 1]),
        ("autostart", ["maybe", 2]),
        ("base_url", ["127.0.0.1:8700", "ftp://x", "http://", 7]),
        ("host", [7, " "]),
        ("data_dir", [7, "a\0b"]),
    ],
)
def test_wrong_values_name_the_setting_its_place_and_what_is_allowed(loads: Loads, name: str, bad: list[Any]) -> None:
    for value in bad:
        error = refused(loads, name, f"argument {name}", **{name: value})
        assert TABLE[name].kind.allowed in error.hint
        if isinstance(value, str) and "\0" not in value:
            refused(loads, name, TABLE[name].variable, environ={TABLE[name].variable: value})


def test_wrong_values_in_files(loads: Loads, tmp_path: Path) -> None:
    path = write_project(tmp_path, "[tool.apothic]\nport = 'http'\n")
    refused(loads, "port", "'http'", str(path))
    assert loads(port=1).port == 1


def test_a_key_is_never_shown(loads: Loads) -> None:
    assert "7777" not in str(refused(loads, "api_key", api_key=7777))


def test_unknown_names_get_the_nearest(loads: Loads, tmp_path: Path) -> None:
    refused(loads, "prot", "did you mean port?", prot=1)
    path = write_project(tmp_path, "[tool.apothic]\nlease = 3\n")
    refused(loads, "lease", "did you mean lease_s?", str(path))
    path = write_project(tmp_path, "[tool.apothic]\nconfig_path = 'x'\n")
    refused(loads, "config_path", str(path))
    write_project(tmp_path, "")
    path = write_profiles(tmp_path, "[default]\nhots = 'x'\n")
    refused(loads, "hots", "did you mean host?", f"[default] of {path}")
    write_profiles(tmp_path, "port = 1\n")
    refused(loads, "port", "there are profile")


def test_the_nearest_project_file_counts(loads: Loads, tmp_path: Path) -> None:
    write_project(tmp_path, "[tool.apothic]\nport = 1\n", where=".")
    assert loads().port == 1
    write_project(tmp_path, "[project]\nname = 'x'\n")
    assert loads().port == 8700


def test_paths_start_where_they_are_written(loads: Loads, tmp_path: Path) -> None:
    write_project(tmp_path, "[tool.apothic]\ndata_dir = 'state'\n", where=".")
    assert loads().data_dir == tmp_path / "state"
    assert loads({"APOTHIC_DATA_DIR": "near"}).data_dir == tmp_path / "project/near"
    assert loads({"APOTHIC_DATA_DIR": "~/far"}).data_dir == tmp_path / "home/far"
    assert loads({"APOTHIC_DATA_DIR": "/abs"}).data_dir == Path("/abs")
    assert loads(data_dir=tmp_path / "p").data_dir == tmp_path / "p"


def test_profiles(loads: Loads, tmp_path: Path) -> None:
    path = write_profiles(tmp_path, "[default]\nport = 1\n[work]\nport = 2\n[home]\nport = 3\n")
    assert loads().port == 1
    work = loads({"APOTHIC_PROFILE": "work"})
    assert (work.port, work.source("port")) == (2, f"profile work in {path}")
    assert (work.profile, work.source("profile")) == ("work", "variable APOTHIC_PROFILE")
    assert loads({"APOTHIC_PROFILE": "work"}, profile="home").port == 3
    refused(loads, "wrok", "default, home, work", profile="wrok")


def test_the_file_can_pick_the_profile(loads: Loads, tmp_path: Path) -> None:
    path = write_profiles(tmp_path, "profile = 'work'\n[work]\nport = 2\n")
    assert (loads().port, loads().profile, loads().source("profile")) == (2, "work", str(path))


def test_a_missing_file_counts_as_empty(loads: Loads, tmp_path: Path) -> None:
    settings = loads({"APOTHIC_CONFIG_PATH": str(tmp_path / "nowhere.toml")})
    assert (settings.port, settings.config_path) == (8700, tmp_path / "nowhere.toml")


def test_another_file_by_its_variable(loads: Loads, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[default]\nport = 9\n")
    assert loads({"APOTHIC_CONFIG_PATH": str(tmp_path / "other.toml")}).port == 9


def test_a_file_with_a_key_must_be_private(loads: Loads, tmp_path: Path) -> None:
    path = write_profiles(tmp_path, "[work]\napi_key = 'k'\n", mode=0o644)
    refused(loads, str(path), f"chmod 600 {path}")
    path.chmod(0o600)
    assert loads(profile="work").api_key == "k"
    write_profiles(tmp_path, "[default]\nport = 1\n", mode=0o644)
    assert loads().port == 1


def test_broken_files(loads: Loads, tmp_path: Path) -> None:
    path = write_profiles(tmp_path, "[default\n")
    refused(loads, str(path), "TOML")
    path.unlink()
    path = write_project(tmp_path, "tool = ")
    refused(loads, str(path), "TOML")
    write_project(tmp_path, "[tool]\napothic = 3\n")
    refused(loads, "tool.apothic", str(path))
