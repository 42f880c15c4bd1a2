"""Settings: argument > variable > project file > profile > default, and each knows where its value came from.

`Settings` is the one table: a field's metadata holds its kind, default, help text and whom it is for; the variable is
`APOTHIC_` and the name. Two files may be read: the nearest `pyproject.toml` upward (`[tool.apothic]`), and
`~/.apothic/config.toml`, which holds one table for each profile:

    profile = "work"                      # which one holds when nobody says; else "default"

    [work]
    base_url = "https://jobs.example.org"
    api_key = "apothic_key_…"             # the file must then be 0600
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from apothic.errors import ConfigError

PREFIX = "APOTHIC_"
UNITS = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Kind:
    """How a setting is read. `read` takes what was written and the folder that relative paths start from."""

    read: Callable[[Any, Path], Any]  # raises ValueError or TypeError
    allowed: str


def _whole(low: int, high: int) -> Kind:
    def read(raw: Any, _: Path) -> int:
        value = int(raw) if isinstance(raw, str) else raw
        if type(value) is not int or not low <= value <= high:
            raise ValueError
        return value

    return Kind(read, f"a whole number from {low:,} to {high:,}")


def _number(low: float, high: float) -> Kind:
    def read(raw: Any, _: Path) -> float:
        value = raw if not isinstance(raw, bool) else None
        if value is None or not low <= float(value) <= high:
            raise ValueError
        return float(value)

    return Kind(read, f"a number from {low:,g} to {high:,g}")


def _read_size(raw: Any, _: Path) -> int:
    if type(raw) is int and raw >= 0:
        return raw
    found = _SIZE.fullmatch(raw.strip()) if isinstance(raw, str) else None
    units = {unit.lower(): factor for unit, factor in UNITS.items()} | {"": 1}
    if found is None or found[2].lower() not in units:
        raise ValueError
    return int(float(found[1]) * units[found[2].lower()])


def _read_text(raw: Any, _: Path) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError
    return raw.strip()


def _choice(*words: str) -> Kind:
    def read(raw: Any, _: Path) -> str:
        if raw not in words:
            raise ValueError
        return str(raw)

    return Kind(read, " or ".join(words))


def _read_flag(raw: Any, _: Path) -> bool:
    if isinstance(raw, bool):
        return raw
    if str(raw).lower() not in _FLAGS:
        raise ValueError
    return _FLAGS[str(raw).lower()]


def _read_path(raw: Any, start: Path) -> Path:
    if not isinstance(raw, str | Path) or not str(raw) or "\0" in str(raw):
        raise ValueError
    return start / raw


def _read_url(raw: Any, _: Path) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"https?://[^/\s?#]+(/[^\s?#]*)?", raw.strip()):
        raise ValueError
    return raw.strip().rstrip("/")


TEXT = Kind(_read_text, "a word")
SIZE = Kind(_read_size, "a number of bytes, or a size such as 64KiB, 1.5MiB or 2GB")
FLAG = Kind(_read_flag, "0 or 1")
FOLDER = Kind(_read_path, "a path")
FILE = Kind(_read_path, "a path")
URL = Kind(_read_url, "a URL such as http://127.0.0.1:8700")


@dataclass(frozen=True)
class Setting:
    """One line of the table. `audience` is server, client or both; `default` is as one would write it."""

    name: str
    kind: Kind
    default: Any
    audience: str
    about: str
    in_files: bool

    @property
    def variable(self) -> str:
        """Return the name of its environment variable."""
        return PREFIX + self.name.upper()


def _line(kind: Kind, default: Any, audience: str, about: str, **more: Any) -> Any:
    told = {"kind": kind, "default": default, "audience": audience, "about": about, "in_files": True} | more
    # A folder's default depends on whose home it is, so only `load` knows it.
    return field(metadata=told) if kind is FOLDER else field(default=None if kind is FILE else default, metadata=told)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of server and client. Times are in seconds, sizes in bytes. Made by `load`."""

    host: str = _line(TEXT, "127.0.0.1", "server", "address to listen on")
    port: int = _line(_whole(0, 65_535), 8700, "server", "port of the API; 0 takes a free one")
    gateway_port: int = _line(_whole(0, 65_535), 8701, "server", "port of services; 0 takes a free one")
    gateway_url: str | None = _line(
        URL, None, "server", "where services are found, when that is not this machine's own address"
    )
    data_dir: Path = _line(FOLDER, "~/.apothic/data", "both", "where the server keeps everything")  # noqa: RUF009
    lease_s: float = _line(_number(0.1, 3_600), 30.0, "server", "how long an agent may be silent before its jobs move")
    grace_s: float = _line(_number(0, 3_600), 10.0, "server", "time to stop by itself, before it is killed")
    startup_timeout_s: float = _line(_number(0.1, 86_400), 300.0, "server", "time for a container to become ready")
    payload_limit: int = _line(SIZE, 2 << 30, "server", "largest argument or result")
    inline_limit: int = _line(SIZE, 64 << 10, "server", "largest value inside a message; a larger one is a blob")
    retention_days: float = _line(_number(0, 36_500), 7.0, "server", "how long ended jobs are kept")
    disk_ceiling: int | None = _line(SIZE, None, "server", "most that the data directory may hold; none: the disk")
    durability: str = _line(
        _choice("full", "fast"), "full", "server", "full: an answer is on disk; fast: it may be not"
    )
    streams_max: int = _line(_whole(1, 10_000_000), 10_000, "server", "most event streams open at once")
    max_wait_s: float = _line(_number(0, 3_600), 60.0, "server", "longest time that one request may wait")
    base_url: str | None = _line(URL, None, "client", "the control plane; none: the one on this machine")
    api_key: str | None = _line(TEXT, None, "client", "what to show it; none: the admin key of one on this machine")
    autostart: bool = _line(FLAG, True, "client", "start a server on this machine when none is running")
    profile: str = _line(TEXT, "default", "client", "which profile of the configuration file holds")
    config_path: Path | None = _line(  # noqa: RUF009
        FILE, "~/.apothic/config.toml", "both", "where the profiles are", in_files=False
    )
    sources: Mapping[str, str] = field(default_factory=dict)

    def source(self, name: str) -> str:
        """Say where the value came from: `variable APOTHIC_PORT`, `default`, … Raises `KeyError`."""
        return self.sources.get(TABLE[name].name, "default")


TABLE: Mapping[str, Setting] = MappingProxyType(
    {line.name: Setting(name=line.name, **line.metadata) for line in dataclasses.fields(Settings) if line.metadata}
)


@dataclass(frozen=True)
class _Layer:
    """What one place says. Relative paths in it start from `start`."""

    place: Callable[[str], str]
    values: Mapping[str, Any]
    start: Path


def load(overrides: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path, home: Path) -> Settings:
    """Settle every setting. `overrides` are the arguments; `None` there means that one was not given.

    Reads the two files, and nothing else that is not passed in. Raises `ConfigError` for a value that is not allowed,
    for a name in a file or among `overrides` that is no setting, and for a file with a key that others may read.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    _check_names(given, TABLE, "the arguments")
    variables = {name: environ[line.variable] for name, line in TABLE.items() if environ.get(line.variable)}
    layers = [
        _Layer(lambda name: f"argument {name}", given, cwd),
        _Layer(lambda name: f"variable {TABLE[name].variable}", variables, cwd),
    ]
    usual = _Layer(lambda _: "default", {name: line.default for name, line in TABLE.items()}, home)
    config_path = _settle("config_path", [*layers, usual], home)[0]
    project = _read_project(cwd)
    layers += [project] if project else []
    layers.append(_read_profile(config_path, [*layers], home))
    layers.append(usual)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in TABLE:
        values[name], sources[name] = _settle(name, layers, home)
    return Settings(**values, sources=MappingProxyType(sources))


def _settle(name: str, layers: Iterable[_Layer], home: Path) -> tuple[Any, str]:
    line = TABLE[name]
    for layer in layers:
        if name not in layer.values:
            continue
        raw, place = layer.values[name], layer.place(name)
        if raw is None:  # only a default is
            return None, place
        if line.kind in (FOLDER, FILE) and str(raw).split("/")[0] == "~":
            raw = home / str(raw)[2:]
        try:
            return line.kind.read(raw, layer.start), place
        except (ValueError, TypeError, OverflowError):
            shown = "that" if name == "api_key" else repr(raw)
            raise ConfigError(
                f"{name} cannot be {shown} ({place})", hint=f"{name} ({line.about}) is {line.kind.allowed}"
            ) from None
    raise KeyError(name)


def _read_project(cwd: Path) -> _Layer | None:
    path = next(
        (folder / "pyproject.toml" for folder in (cwd, *cwd.parents) if (folder / "pyproject.toml").is_file()), None
    )
    tools = _read_toml(path).get("tool", {}) if path else {}
    table = tools.get("apothic", {}) if isinstance(tools, dict) else {}
    if path is None or not table:
        return None
    if not isinstance(table, dict):
        raise ConfigError(f"tool.apothic is no table in {path}", hint="write [tool.apothic], and settings below it")
    _check_names(table, [name for name, line in TABLE.items() if line.in_files], f"[tool.apothic] of {path}")
    return _Layer(lambda _: f"project file {path}", table, path.parent)


def _read_profile(path: Path, above: list[_Layer], home: Path) -> _Layer:
    document = _read_toml(path) if path.is_file() else {}
    profiles = {name: table for name, table in document.items() if isinstance(table, dict)}
    _check_names([name for name in document if name not in profiles], ["profile"], str(path))
    if any("api_key" in table for table in profiles.values()) and path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} holds an API key, and others may read it", hint=f"chmod 600 {path}")
    default = _Layer(lambda _: "default", {"profile": TABLE["profile"].default}, home)
    chosen, place = _settle("profile", [*above, _Layer(lambda _: str(path), document, path.parent), default], home)
    if chosen not in profiles and place != "default":
        raise ConfigError(
            f"there is no profile {chosen!r} in {path} ({place})",
            hint=f"it has {', '.join(sorted(profiles)) or 'no profiles'}; write [{chosen}] there",
        )
    table = profiles.get(chosen, {})
    allowed = [name for name, line in TABLE.items() if line.in_files and name != "profile"]
    _check_names(table, allowed, f"[{chosen}] of {path}")
    picked = {"profile": document["profile"]} if "profile" in document else {}
    return _Layer(
        lambda name: str(path) if name == "profile" else f"profile {chosen} in {path}", table | picked, path.parent
    )


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid TOML: {error}", hint="correct it, or move it away") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="make it readable, or move it away"
        ) from None


def _check_names(names: Iterable[str], allowed: Iterable[str], place: str) -> None:
    import difflib

    known = list(allowed)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"there is no setting {name!r} ({place})", hint=hint)
