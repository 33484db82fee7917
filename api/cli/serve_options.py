"""The options of `kvtrie serve`: a flag, a variable of the environment and a key of a TOML file for each.

A flag counts before the environment, the environment before the file, and the file before the default.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvtrie.prefix_tree.errors import InputError

Value = str | int | float | list[str] | None

PREFIX = "KVTRIE_SERVE_"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting."""

    name: str
    """As its key is spelled in a file; `--max-body` is `max_body` there, and KVTRIE_SERVE_MAX_BODY."""
    help: str
    default: Value = None
    """Its type is the option's; None is for text."""
    metavar: str | None = None
    choices: tuple[str, ...] | None = None

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its variable of the environment."""
        return PREFIX + self.name.upper()

    def read(self, given: object, where: str) -> Value:
        """A value that was given as text, or of the type that a file has.

        Raises:
            InputError: it is of another type, or none of the choices.
        """
        if isinstance(self.default, list):
            values = given.split(",") if isinstance(given, str) else given
            if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
                raise InputError(f"{where} must be a list of texts, got {given!r}")
            return values
        kind = str if self.default is None else type(self.default)
        try:
            if isinstance(given, bool) or not isinstance(given, (str, int, float)):
                raise ValueError
            value = kind(given)
            if kind is int and value != float(given):
                raise ValueError
        except ValueError:
            raise InputError(f"{where} must be {_KINDS[kind]}, got {given!r}") from None
        if self.choices is not None and value not in self.choices:
            raise InputError(f"{where} must be one of {', '.join(self.choices)}, got {given!r}")
        return value


_KINDS = {str: "a text", int: "a whole number", float: "a number"}

OPTIONS = (
    Option("model", "a Hugging Face directory, a .gguf file, or smollm2", metavar="DIR"),
    Option("served_name", "name that requests may ask for; may be repeated (default: the directory's)", [], "NAME"),
    Option(
        "listen",
        "http://host:port or unix:///path[?mode=660]; may be repeated (default: http://127.0.0.1:8000)",
        ["http://127.0.0.1:8000"],
        "URL",
    ),
    Option("tenants", "whose keys are let in (default: one open tenant, on loopback only)", metavar="FILE"),
    Option("memory", "KV pool; auto: a quarter of the free memory, of a GPU four fifths", "auto", "SIZE"),
    Option("chunk_tokens", "tokens per chunk", 64, "N"),
    Option("kv_format", "of stored keys and values; int8 and fp8 are lossy", "raw", choices=("raw", "int8", "fp8")),
    Option("policy", "which chunks are evicted first, e.g. lru, lfu, s3fifo", "lru", "NAME"),
    Option("pin_budget", "most bytes that each tenant may pin (default: no limit)", metavar="SIZE"),
    Option(
        "dtype",
        "of the weights; auto: as stored, or float32 on a CPU that is slow with that",
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    Option("device", "auto is the first GPU, or else the CPU", "auto", "NAME"),
    Option("store", "lower tier, e.g. redis://127.0.0.1:6379/0", metavar="URL"),
    Option("sidecar", "lower tier: a kvtrie sidecar, http://host:port or unix:///path", metavar="URL"),
    Option("step_tokens", "most tokens computed in one step", 2048, "N"),
    Option("max_running", "most sequences in one step", 256, "N"),
    Option("max_waiting", "most requests that wait; a further one is answered 429", 4096, "N"),
    Option("max_body", "longest body of a request", "16MiB", "SIZE"),
    Option("chat_memory", "answered chats, whose tokens next turns continue; 0: none", "64MiB", "SIZE"),
    Option("drain_seconds", "what requests in progress get after SIGTERM", 30.0, "S"),
    Option("failed_seconds", "what readiness probes get to see that the engine failed, before the end", 5.0, "S"),
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares a flag for each option, `--config` and `--print-config`."""
    for option in OPTIONS:
        shown = option.help if option.choices is None else f"{option.help} ({', '.join(option.choices)})"
        if isinstance(option.default, (str, int, float)):
            shown += f" (default: {option.default})"
        parser.add_argument(
            option.flag,
            dest=option.name,
            action="append" if isinstance(option.default, list) else "store",
            metavar=option.metavar if option.choices is None else "NAME",
            choices=option.choices,
            help=shown.replace("%", "%%"),
        )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with any of these options as keys")
    parser.add_argument(
        "--print-config", action="store_true", help="print the whole configuration as TOML, and end"
    )


def read_options(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> dict[str, Value]:
    """The value of every option.

    Raises:
        InputError: a value of the wrong type, a file that cannot be read, or a name that is no option's.
    """
    file = _read_file(args.config)
    known = {option.variable for option in OPTIONS}
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            raise InputError(f"{name} is in the environment, and kvtrie serve has no such option: unset it")
    values: dict[str, Value] = {}
    for option in OPTIONS:
        flag = getattr(args, option.name)
        if flag is not None:
            values[option.name] = option.read(flag, option.flag)
        elif option.variable in environment:
            values[option.name] = option.read(environment[option.variable], option.variable)
        elif option.name in file:
            values[option.name] = option.read(file[option.name], f"{args.config}: {option.name}")
        else:
            values[option.name] = option.default
    return values


def toml_of(values: Mapping[str, Value]) -> str:
    """A file that sets all options to these values; those that are unset are comments."""
    lines = []
    for name, value in values.items():
        lines.append(f"# {name} is not set" if value is None else f"{name} = {_toml(value)}")
    return "\n".join(lines)


def _toml(value: str | int | float | list[str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        escaped = "".join(
            f"\\u{ord(char):04x}" if ord(char) < 32 or char in '"\\' or ord(char) == 127 else char for char in value
        )  # fmt: skip
        return f'"{escaped}"'
    return repr(value)


def _read_file(path: Path | None) -> Mapping[str, object]:
    if path is None:
        return {}
    try:
        document = _load_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}") from None
    # UnicodeDecodeError and TOMLDecodeError both are ValueErrors.
    except ValueError as error:
        raise InputError(f"--config {path} is not TOML: {error}") from None
    unknown = sorted(set(document) - {option.name for option in OPTIONS})
    if unknown:
        raise InputError(f"--config {path} has {unknown[0]!r}, which is no option of kvtrie serve")
    return document


def _load_toml(text: str) -> Mapping[str, object]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
