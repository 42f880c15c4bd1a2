"""A function's parameters become options, by their annotations; every one may be given by position too."""

from __future__ import annotations

import enum
import inspect
import json
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import click

_REST = "positional"  # option identifiers carry a prefix, so no parameter of the user's can be called this
_PREFIX = "given_"
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Reading:
    """How text becomes a value. `read` raises `ValueError`; `several` says that it is a list of such values."""

    read: Callable[[str], Any]
    label: str
    several: Callable[[Sequence[Any]], Any] | None = None


def loosely(text: str) -> Any:
    """Read JSON if it is JSON, else take the text as it is.

    >>> loosely("3"), loosely("three")
    (3, 'three')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text


def reading(annotation: Any) -> Reading:
    """Return how a parameter with that annotation is read from the command line."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return reading(arguments[0])
    if origin in (Union, types.UnionType):
        return _either([reading(one) for one in arguments if one is not type(None)])
    if origin is Literal:
        return _one_of({str(word): word for word in arguments})
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _one_of({str(one.value): one for one in annotation} | dict(annotation.__members__))
    whole = origin or annotation
    if whole in (list, set, frozenset, Sequence) or (whole is tuple and (not arguments or arguments[-1] is ...)):
        inner = reading(arguments[0]) if arguments else Reading(loosely, "value")
        return Reading(inner.read, inner.label, list if whole is Sequence else whole)
    if whole is bool:
        return Reading(_flag, "true|false")
    if whole is tuple:
        return Reading(lambda text: tuple(json.loads(text)), "JSON list")
    return _SIMPLE.get(getattr(whole, "__qualname__", ""), lambda: Reading(loosely, "value"))()


def _iso(name: str) -> Reading:
    import datetime

    return Reading(getattr(datetime, name).fromisoformat, f"ISO {name}")


def _decimal() -> Reading:
    import decimal

    def read(text: str) -> Any:
        try:
            return decimal.Decimal(text)
        except decimal.InvalidOperation:
            raise ValueError from None

    return Reading(read, "decimal")


def _uuid() -> Reading:
    import uuid

    return Reading(uuid.UUID, "UUID")


# By name, so that nothing is imported for a type that the function does not use.
_SIMPLE: dict[str, Callable[[], Reading]] = {
    "int": lambda: Reading(int, "int"),
    "float": lambda: Reading(float, "float"),
    "str": lambda: Reading(str, "text"),
    "bytes": lambda: Reading(str.encode, "text"),
    "Path": lambda: Reading(Path, "path"),
    "datetime": lambda: _iso("datetime"),
    "date": lambda: _iso("date"),
    "Decimal": _decimal,
    "UUID": _uuid,
}


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError
    return _FLAGS[text.lower()]


def _one_of(words: dict[str, Any]) -> Reading:
    def read(text: str) -> Any:
        if text not in words:
            raise ValueError
        return words[text]

    return Reading(read, "|".join(words))


def _either(choices: list[Reading]) -> Reading:
    if len(choices) == 1:
        return choices[0]
    # Any text is a str, so that comes last whatever the order of the union.
    ordered = sorted(choices, key=lambda one: one.label in ("text", "value", "path"))

    def read(text: str) -> Any:
        for choice in ordered:
            try:
                return choice.read(text)
            except ValueError:
                continue
        raise ValueError

    return Reading(read, " or ".join(choice.label for choice in choices))


def _option(parameter: inspect.Parameter, how: Reading, about: str) -> click.Option:
    word = parameter.name.replace("_", "-")
    names = [f"--{word}"] if len(word) > 1 else [f"--{word}", f"-{word}"]
    if how.label == "true|false" and how.several is None:
        names = [f"--{word}/--no-{word}"]
        return click.Option([_PREFIX + parameter.name, *names], default=None, help=about)
    if word != parameter.name:
        names.append(f"--{parameter.name}")
    shown = how.label if "|" in how.label else how.label.upper()
    return click.Option(
        [_PREFIX + parameter.name, *names], type=str, multiple=how.several is not None, metavar=shown, help=about
    )


def _about(parameter: inspect.Parameter, annotation: Any) -> str:
    told = [note for note in getattr(annotation, "__metadata__", ()) if isinstance(note, str)]
    if parameter.default is not parameter.empty:
        told.append(f"(default: {parameter.default!r})")
    elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        told.append("(required)")
    return " ".join(told)


class ParameterCommand(click.Command):
    """The command line of one function: parses to the `args` and `kwargs` of one call, and hands them to `deed`."""

    def __init__(
        self, name: str, function: Callable[..., Any], deed: Callable[[list[Any], dict[str, Any]], Any]
    ) -> None:
        self.deed = deed
        self.parameters = list(inspect.signature(function).parameters.values())
        hints = _hints(function)
        self.readings = {one.name: reading(hints.get(one.name, Any)) for one in self.parameters}
        options: list[click.Parameter] = [
            _option(one, self.readings[one.name], _about(one, hints.get(one.name)))
            for one in self.parameters
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        ]
        spare = click.Argument([_REST], nargs=-1, type=str, metavar="[ARGS]...")
        super().__init__(
            name, params=[spare, *options], help=inspect.getdoc(function), callback=self._call,
            # So that `-2` may be a number; what is no number and no option is refused in `_bind`.
            context_settings={"ignore_unknown_options": True},
        )  # fmt: skip

    def _call(self, positional: tuple[str, ...], **given: Any) -> Any:
        ctx = click.get_current_context()
        named = {
            identifier.removeprefix(_PREFIX): value
            for identifier, value in given.items()
            if ctx.get_parameter_source(identifier) is click.core.ParameterSource.COMMANDLINE
        }
        return self.deed(*self._bind(ctx, list(positional), named))

    def _bind(self, ctx: click.Context, texts: list[str], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for parameter in self.parameters:
            how = self.readings[parameter.name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                args += [self._read_next(ctx, parameter.name, text) for text in texts]
                texts = []
            elif parameter.kind is parameter.VAR_KEYWORD:
                continue
            elif parameter.name in named:
                kwargs[parameter.name] = self._read_named(ctx, parameter.name, named[parameter.name])
            elif texts and parameter.kind is not parameter.KEYWORD_ONLY:
                taken, texts = (texts, []) if how.several else (texts[:1], texts[1:])
                values = [self._read_next(ctx, parameter.name, text) for text in taken]
                value = how.several(values) if how.several else values[0]
                if parameter.kind is parameter.POSITIONAL_ONLY:
                    args.append(value)
                else:
                    kwargs[parameter.name] = value
            elif parameter.default is parameter.empty:
                raise click.UsageError(f"{parameter.name} ({how.label}) is missing", ctx)
        if texts:
            self._refuse_option(ctx, texts[0])
            raise click.UsageError(f"{texts[0]!r} is one argument too many", ctx)
        return _by_position(self.parameters, args, kwargs)

    def _read_named(self, ctx: click.Context, name: str, given: Any) -> Any:
        if isinstance(given, bool):
            return given
        several = self.readings[name].several
        return several([self._read(ctx, name, text) for text in given]) if several else self._read(ctx, name, given)

    def _read_next(self, ctx: click.Context, name: str, text: str) -> Any:
        self._refuse_option(ctx, text)
        return self._read(ctx, name, text)

    def _read(self, ctx: click.Context, name: str, text: str) -> Any:
        how = self.readings[name]
        try:
            return how.read(text)
        except (ValueError, TypeError):
            raise click.UsageError(f"{name}: {text!r} is no {how.label}", ctx) from None

    def _refuse_option(self, ctx: click.Context, text: str) -> None:
        if text.startswith("-") and len(text) > 1 and not isinstance(loosely(text), int | float):
            known = [name for one in self.get_params(ctx) for name in one.opts if name.startswith("--")]
            import difflib

            raise click.NoSuchOption(text.split("=")[0], possibilities=difflib.get_close_matches(text, known), ctx=ctx)


def _by_position(
    parameters: list[inspect.Parameter], args: list[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """With values for `*rest`, what stands before it must go by position as well."""
    first = sum(one.kind is one.POSITIONAL_ONLY for one in parameters)
    if not any(one.kind is one.VAR_POSITIONAL for one in parameters) or len(args) <= first:
        return args, kwargs
    before = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    return [*args[:first], *(kwargs.pop(name) for name in before), *args[first:]], kwargs


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # a name that exists for type checkers only: read its values loosely
        return {}
