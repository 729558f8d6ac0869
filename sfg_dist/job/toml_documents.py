"""TOML documents: read, overridden by ``--set`` and checked against a model; messages name the file, line and key."""

from __future__ import annotations

import codecs
import datetime
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sfg_dist.job.arguments import plain
from sfg_dist.job.errors import ConfigError
from sfg_dist.job.key_types import close_name, expected, flat_union, inner_model, type_of_key, user_key, value_kinds
from sfg_dist.job.words import as_line, shown

Model = type[BaseModel]
_T = TypeVar("_T", bound=BaseModel)

MAX_BYTES = 4 << 20
"""The largest TOML file that is read."""
_ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_MAX_PROBLEMS = 8
_MAX_KEYS = 32
_NAME = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_KEY_PART = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^.=]*))\s*([.=]|$)""")  # of a key in --set, and what follows it
_DEEP = re.compile(rf"""(?<![\w"'.-])(?:{_NAME}[ \t]*+\.[ \t]*+){{{_MAX_KEYS - 1}}}""")
# How a message of the parser begins, and what to tell the user instead.
_REASONS = (
    ("Cannot overwrite a value", "the key is there twice"),
    ("Cannot declare", "the table is there twice"),
    ("Invalid value", "this is no value of TOML: write text in quotes, and true and false in small letters"),
    ("Unescaped", "a backslash within double quotes is written twice, or the text stands in single quotes"),
    ("Invalid hex value", "a backslash within double quotes is written twice, or the text stands in single quotes"),
    ("Unterminated", "a quote or bracket is not closed"),
    ("Illegal character '\\n'", "a quote is not closed"),
    ("Illegal character", "there is a control character"),
    ("Unclosed", "a bracket is not closed"),
    ("Expected newline", "something follows the value: write one key = value on each line"),
    ("Expected ']'", "a bracket is not closed"),
    ("Expected '='", "expected key = value"),
    ("Invalid statement", "expected key = value, or [table]"),
    ("Invalid initial character", "expected key = value, or [table]"),
)


def read_document(path: str | Path, what: str) -> str:
    """The text of a TOML file with any system's line ends; messages call it ``what``, such as "job file".

    Raises:
        ConfigError: it cannot be read, or is not in UTF-8.
    """
    name = f"{what} {as_line(path)}"
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise ConfigError(f"{name} cannot be read: it is a directory") from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{name} does not exist, and no file can have this name") from None
    return text_of(content, name)


def text_of(content: bytes, name: str) -> str:
    """The text of a TOML file from its bytes; the first ``MAX_BYTES + 1`` of a longer one are enough.

    Raises:
        ConfigError: it is too long, or not text in UTF-8.
    """
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{name} is larger than {MAX_BYTES >> 20} MiB: that is a table, and data.source names it")
    for mark, encoding in _ENCODINGS.items():
        if content.startswith(mark):
            raise ConfigError(f"{name} is in {encoding}: save it in UTF-8")
    if b"\0" in content:
        raise ConfigError(f"{name} is not valid TOML: it is no text in UTF-8, since it holds zero bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name} is not valid TOML: byte {content[error.start]:#04x} in line {line} is not UTF-8: save it in UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_document(text: str, name: str) -> dict[str, Any]:
    """The tables of a TOML document, whose line ends are "\\n".

    Raises:
        ConfigError: it is not valid TOML; the message has the line and what to write instead.
    """
    if _DEEP.search(text):  # the parser takes a time that grows with the square of their number
        raise ConfigError(f"{name} is not valid TOML: a key of {_MAX_KEYS} names or more with points between them")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML{_where(str(error), text)}") from None
    except RecursionError:
        raise ConfigError(f"{name} is not valid TOML: brackets within brackets, too deep") from None
    except ValueError:  # Python's own limit on the digits of a number
        raise ConfigError(
            f"{name} is not valid TOML: a number has thousands of digits, or a date does not exist"
        ) from None


def checked(root: type[_T], document: Mapping[str, Any], origin: str) -> _T:
    """The document as its model.

    Numbers of numpy, paths and tuples are taken for what they mean. Messages call the document ``origin``.

    Raises:
        ConfigError: a key is unknown or a value is wrong; all problems are listed.
    """
    try:
        return root.model_validate(plain(document))
    except ValidationError as error:
        problems = error.errors()
        # Where a key takes words or a table, a problem within the table is told, not that the table is no word.
        deeper = {problem["loc"][:depth] for problem in problems for depth in range(1, len(problem["loc"]) - 1)}
        kept = [each for each in problems if each["type"] != "literal_error" or each["loc"][:-1] not in deeper]
        lines = [_describe(root, problem) for problem in kept]
    except RecursionError:
        lines = ["tables within tables, too deep"]
    lines = list(dict.fromkeys(lines))  # a union reports one problem once per member
    if len(lines) > _MAX_PROBLEMS:
        lines = [*lines[:_MAX_PROBLEMS], f"and {len(lines) - _MAX_PROBLEMS:,} problems more"]
    raise ConfigError(f"{as_line(origin)}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])) from None


def apply_override(document: dict[str, Any], assignment: str, root: Model, *, option: str = "--set") -> None:
    """Set a key of a document, in place.

    The value is read as TOML. It is taken as text where it is not valid TOML, and where the key takes text:
    ``output.dir=12``.

    Args:
        document: tables of keys.
        assignment: "table.key=value".
        root: the model of the document.
        option: what messages call the assignment.

    Raises:
        ConfigError: it is no such assignment.
    """
    keys, text = _split(assignment)
    if text is None or len(keys) < 2 or not all(keys):
        raise ConfigError(f"{option} {shown(assignment)}: expected table.key=value, for example {_example(root)}")
    if len(keys) > 8:
        raise ConfigError(f"{option} {shown(assignment)}: no key lies so deep")
    table = document
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = table[key] = {}  # data.dequantize.AT=0.1 replaces dequantize="auto"
        table = inner
    table[keys[-1]] = _value(text.strip(), type_of_key(root, keys))


def _split(assignment: str) -> tuple[list[str], str | None]:
    """The names of a key, which may stand in quotes, and what stands behind its equals sign; None without one."""
    keys: list[str] = []
    place, end = 0, "."
    while end == ".":
        found = _KEY_PART.match(assignment, place)
        assert found is not None  # it takes any text
        keys.append(next(part for part in found.groups()[:3] if part is not None).strip())
        place, end = found.end(), found[4]
    return keys, assignment[place:] if end == "=" else None


def _example(root: Model) -> str:
    return "labels.num_pairs=10000" if _is_job(root) else "slurm.nodes=2"


def _is_job(root: Model) -> bool:
    return "labels" in root.model_fields


def _value(text: str, takes: Any) -> Any:
    """The value behind the equals sign, for a key of the type ``takes``; None where there is no such key."""
    kinds = set(value_kinds(takes))
    try:
        document = tomllib.loads(f"value = {text}")
        value = document["value"] if len(document) == 1 else text
    except (ValueError, RecursionError):
        value = text  # a bare word or a path is a string
        if kinds & {int, float} and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            return float(text)  # .5 and 5. and 01, which TOML does not know
        if list in kinds and str not in flat_union(takes) and re.fullmatch(r"\[[^\[\]'\"]+\]", text):
            return [word.strip() for word in text[1:-1].split(",")]  # a shell took the quotes away
    if str in kinds and isinstance(value, bool | int | float | datetime.date | datetime.time):
        return text
    if list in kinds and isinstance(value, list):
        inner = next((typing.get_args(each)[0] for each in flat_union(takes) if typing.get_origin(each) is list), None)
        if set(value_kinds(inner)) == {str}:  # columns that are named 1, 2, 3
            return [str(each) if type(each) is int else each for each in value]
    return value


def _where(said: str, text: str) -> str:
    """The line at which a document is not valid TOML and the reason, from the parser's message."""
    found = re.search(r"\(at line (\d+), column (\d+)\)", said)
    reason = next((words for start, words in _REASONS if said.startswith(start)), "expected key = value, or [table]")
    lines = text.rstrip().split("\n")
    number = min(int(found[1]) if found else len(lines), len(lines))
    line = lines[number - 1].strip()
    if any(mark in line for mark in "\u201c\u201d\u2018\u2019\u201e"):
        reason = "the quotes are curly: write straight ones"
    elif "\xa0" in line:
        reason = "a space is a no-break space, as web pages have them: write an ordinary one"
    return f" in line {number}, {shown(line)}: {reason}"


def _describe(root: Model, problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return _describe_unknown(root, location)
    # A union adds the name of the member it tried; the user's key ends before it.
    path, field = user_key(root, location)
    key = ".".join(as_line(part) for part in path)
    if kind == "missing":
        return f"{key} is required and has no default"
    if kind == "value_error":
        said = str(problem["msg"]).removeprefix("Value error, ")
        return f"{key}: {said}" + ("" if isinstance(given, dict) else f", got {shown(given)}")
    if field is None:
        return f"{key or 'it'} must be a table of keys, got {shown(given)}"
    if kind == "string_unicode":
        return f"{key} must be text in UTF-8, got {shown(given)}"
    is_beyond = kind in ("less_than", "less_than_equal") or kind == "int_parsing_size"
    words = expected(field.annotation, field.metadata, with_limits=is_beyond)
    hint = ""
    is_text = kind == "string_type" and str in value_kinds(field.annotation)
    if is_text and isinstance(given, bool | int | float | datetime.date | datetime.time):
        hint = ": write it in quotes"
    return f"{key} must be {words}, got {shown(given)}{hint}"


def _describe_unknown(root: Model, location: list[str]) -> str:
    parent, _ = user_key(root, location[:-1])
    model: Any = root
    for part in parent if location[:-1] else []:
        model = inner_model(model.model_fields[part].annotation)
    if len(location) == 1 or not (isinstance(model, type) and issubclass(model, BaseModel)):
        model, parent = root, []
    name = location[-1]
    prefix = ".".join([*parent, ""]) if parent else ""
    near = close_name(name, model.model_fields)
    found = [f"{prefix}{near}"] if near else []
    found += [f"{table}.{name}" for table, field in root.model_fields.items()
              if name in getattr(field.annotation, "model_fields", {})]  # fmt: skip
    meant = f"; did you mean {found[0]}?" if found else ""
    if not _is_job(root):
        meant = meant or f"; valid keys: {', '.join(model.model_fields)}"
    else:
        table = found[0].partition(".")[0] if found else parent[0] if parent else ""
        meant += f"{'' if meant else ';'} `{f'sfg keys {table}'.rstrip()}` lists the keys{' there' if table else ''}"
    return f"unknown key {prefix}{as_line(name[:80])}{meant}"
