"""TOML files whose mistakes are told by key, in the words of TOML."""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec import Struct

from tiflow.errors import InvalidArgument
from tiflow.values import show

Where: TypeAlias = Callable[[str], str]  #: a key as the user knows it: `--addr`, or `conf/master.toml: addr`


def read_toml(path: str, key: str) -> dict[str, Any]:
    """The file as a tree; one clear line when it is missing or is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidArgument(
            f"{key} = {path}: cannot be read ({error.strerror}); name a file that is there"
        ) from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path}: is not UTF-8 text; write it as TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"{path}: is not TOML: {error}; strings need quotes, tables a [name]") from None


def check_keys(tree: Mapping[str, Any], kind: type[Struct], path: str, prefix: str = "") -> None:
    """Refuse a key that `kind` does not have, and suggest the one that was meant."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in tree.items():
        if key not in known:
            raise InvalidArgument(f"{path}: unknown key {prefix}{key} = {show(value)}; {suggest(key, known, prefix)}")
        for inner in (known[key], *get_args(known[key])):  # itself, or what it is beside None
            if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Struct):
                check_keys(value, inner, path, f"{prefix}{key}.")


def suggest(key: str, known: Iterable[str], prefix: str = "") -> str:
    """`did you mean …?`, or all that there is."""
    names = list(known)
    near = difflib.get_close_matches(key.replace("_", "-"), names, n=1)
    if near:
        return f"did you mean {prefix}{near[0]}?"
    return f"known are {', '.join(prefix + name for name in names)}"


def type_error(error: msgspec.ValidationError, tree: Any, where: Where) -> InvalidArgument:
    """msgspec's message in the words of TOML, with the key and its value."""
    text, _, at = str(error).partition(" - at `$")
    text = text.replace(" | null`", "`")  # TOML has none: the key is left out
    at = at.removesuffix("`").removeprefix(".")
    value: Any = tree
    for part in re.findall(r"[^.\[\]]+", at):
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
    for name, words in _TYPES.items():
        text = text.replace(f"`{name}`", words)
    wanted = re.sub(r"^Expected (.*), got .*$", r"must be \1", text)
    if "..." in at:  # a value of a table: msgspec does not say which
        at = at.split("[")[0].removesuffix("....").removesuffix("...")
        return InvalidArgument(f"{where(at)} = {show(tree.get(at))}: each value {wanted}")
    return InvalidArgument(f"{where(at)} = {show(value)}: {wanted}")


_TYPES = {
    "str | object": "a name in quotes, or a table",
    "str": "a string in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list in brackets",
    "object": "a table",
}
