"""What an endpoint's function is called with: by name from the path, the query and a JSON body, by annotation.

The rule: the path gives first, then the query, then a JSON object by its keys. The one required parameter that is left
then takes the body as a whole, if the body is no object or the parameter is annotated as one.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args, get_origin

import msgspec

from apothic.errors import ConfigError, InvalidRequestError

_FIELD = re.compile(r"\{(\w+)(:path)?\}")
_MISSING: Any = object()


class _Parameter(NamedTuple):
    name: str
    kind: Any
    required: bool
    positional: bool
    many: bool  # a list takes each value of a query's key
    whole: bool  # an object takes a body's


class Parameters:
    """The parameters of one function. Raises `ConfigError` for a function that cannot be called so."""

    def __init__(self, entry: Callable[..., Any], path: str) -> None:
        self._path = _pattern(path)
        self._known: list[_Parameter] = []
        self._open = False  # it takes any other name too
        called = entry if inspect.isroutine(entry) else type(entry).__call__
        hints = typing.get_type_hints(called, include_extras=True)
        for name, one in inspect.signature(entry).parameters.items():
            if one.kind is one.VAR_POSITIONAL:
                raise ConfigError(
                    f"an endpoint cannot take *{name}: values come by name", hint=f"take **{name}, or a list"
                )
            if one.kind is one.VAR_KEYWORD:
                self._open = True
                continue
            kind = hints.get(name, Any)
            _check(name, kind)
            self._known.append(
                _Parameter(
                    name, kind, one.default is one.empty, one.kind is one.POSITIONAL_ONLY,
                    _accepts(kind, _is_list), _accepts(kind, _is_object),
                )
            )  # fmt: skip
        names = {one.name for one in self._known}
        for field, _ in _FIELD.findall(path):
            if field not in names and not self._open:
                raise ConfigError(f"the path {path!r} has {{{field}}}, and the function no such parameter")

    def match(self, path: str) -> dict[str, str] | None:
        """Return what the path gives, or `None` when it is another one."""
        found = self._path.fullmatch(path)
        return found.groupdict() if found is not None else None

    def wants_body(self, given: Mapping[str, Any]) -> bool:
        """Tell whether there is anything left that a body could give."""
        return self._open or any(one.name not in given for one in self._known)

    def bind(
        self, path: Mapping[str, str], query: Mapping[str, list[str]], body: Any = _MISSING
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments. Raises `InvalidRequestError`, which names the parameter."""
        found: dict[str, Any] = {}
        texts = {**query, **{name: [value] for name, value in path.items()}}
        fields = body if isinstance(body, dict) else {}
        left = [one for one in self._known if one.name not in texts and one.name not in fields]
        for one in self._known:
            if one.name in texts:
                where = "path" if one.name in path else "query"
                found[one.name] = _convert(one, texts[one.name] if one.many else texts[one.name][-1], where)
            elif one.name in fields:
                found[one.name] = _convert(one, fields[one.name], "body")
        required = [one for one in left if one.required]
        if len(required) == 1 and body is not _MISSING and (required[0].whole or not isinstance(body, dict)):
            found[required[0].name] = _convert(required[0], body, "body")
            fields = {}
        for one in required:
            if one.name not in found:
                raise _wrong(one.name, "it is missing", "path, query or JSON body")
        if self._open:
            others = {name: values[-1] for name, values in texts.items()} | {
                name: value for name, value in fields.items() if isinstance(name, str)
            }
            found |= {name: value for name, value in others.items() if name not in found}
        args = []
        for one in self._known:
            if one.positional:
                if one.name not in found:
                    break  # those after it cannot be given by position either
                args.append(found.pop(one.name))
        return args, found


def _convert(one: _Parameter, value: Any, where: str) -> Any:
    try:
        converted = msgspec.convert(value, one.kind, strict=False, dec_hook=_validated)
    except msgspec.ValidationError as error:
        raise _wrong(one.name, str(error).replace("`$", f"`{one.name}").replace("`", "'"), where) from None
    _settle(converted)
    return converted


def _settle(value: Any) -> None:
    """Give dataclasses their defaults as attributes of their own: msgspec leaves them to the class, and then out."""
    if dataclasses.is_dataclass(value) and hasattr(value, "__dict__"):
        own: dict[str, Any] = vars(value)
        for field in dataclasses.fields(value):
            if field.default is not dataclasses.MISSING:
                own.setdefault(field.name, field.default)
        inner: Any = own.values()
    elif isinstance(value, msgspec.Struct):
        inner = [getattr(value, name) for name in value.__struct_fields__]
    elif isinstance(value, dict):
        inner = value.values()
    else:
        inner = value if isinstance(value, list | tuple) else ()
    for part in inner:
        _settle(part)


def _validated(kind: type, value: Any) -> Any:
    """Let a pydantic model read itself."""
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise NotImplementedError
    try:
        return validate(value)
    except ValueError as error:
        raise msgspec.ValidationError(str(error)) from None


def _wrong(name: str, what: str, where: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"parameter {name!r}: {what}",
        hint=f"give {name!r} in the {where}" if what == "it is missing" else "",
        details={"parameter": name, "in": where},
    )


def _pattern(path: str) -> re.Pattern[str]:
    parts, at = [], 0
    for field in _FIELD.finditer(path):
        parts += [re.escape(path[at : field.start()]), f"(?P<{field[1]}>{'.*' if field[2] else '[^/]+'})"]
        at = field.end()
    return re.compile("".join(parts) + re.escape(path[at:]), re.DOTALL)


def _check(name: str, kind: Any) -> None:
    try:
        msgspec.inspect.type_info(kind)
    except TypeError as error:
        raise ConfigError(
            f"parameter {name!r} cannot be read from a request: {error}", hint="annotate it otherwise"
        ) from None


def _accepts(kind: Any, holds: Callable[[Any], bool]) -> bool:
    """Tell whether `holds` is true of a type, or of one in its union."""
    origin = get_origin(kind)
    if origin is typing.Annotated:
        return _accepts(get_args(kind)[0], holds)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(one, holds) for one in get_args(kind))
    return holds(origin or kind)


def _is_list(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, list | tuple | set | frozenset)


def _is_object(kind: Any) -> bool:
    return (
        dataclasses.is_dataclass(kind)
        or typing.is_typeddict(kind)
        or (isinstance(kind, type) and (issubclass(kind, msgspec.Struct | Mapping) or hasattr(kind, "model_validate")))
    )
