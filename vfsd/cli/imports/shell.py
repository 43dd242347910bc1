"""The commands in a shell script or in supervisord's configuration, found without running anything."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from vfsd.cli.errors import CliError

_CONTINUED = re.compile(r"\\\n")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_BETWEEN = "();<>|&\n"
"""What separates commands, or their words."""
_SUPERVISORD = re.compile(r"^\[program:", re.MULTILINE)
_SCRIPT_MAX = 1 << 20
"""Bytes of a script that a configuration names."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, as a shell would have them, but for what it would put in place of `$`.

    :raise CliError: the quotes do not match.
    """
    if _SUPERVISORD.search(text):
        yield from _supervised(text)
        return
    words: list[str] = []
    for word in _tokens(text):
        if not set(word) <= set(_BETWEEN) or not word:
            words.append(word)
            continue
        if word[0] in "<>" and words and words[-1].isdigit():
            words.pop()  # the descriptor that is redirected
        if words:
            yield words
        words = []
    if words:
        yield words


def _tokens(text: str) -> list[str]:
    reader = shlex.shlex(_COMMENT.sub("", _CONTINUED.sub(" ", text)), posix=True, punctuation_chars=_BETWEEN)
    reader.whitespace = " \t\r"
    reader.whitespace_split = True
    reader.commenters = ""
    try:
        return list(reader)
    except ValueError as error:
        raise CliError(
            f"it can't be read as a shell reads it: {error}", "look at the quotes in it."
        ) from None


def _supervised(text: str) -> Iterator[list[str]]:
    """The commands of supervisord's programs; of those that are scripts, what these run."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise CliError(f"it is no configuration of supervisord: {error.message}") from None
    for section in parser.sections():
        command = parser.get(section, "command", fallback="")
        for words in commands(command) if section.startswith("program:") else ():
            script = _script(words[0])
            yield from commands(script) if script else [words]


def _script(path: str) -> str:
    """What is in a shell script; "" of anything else."""
    try:
        with Path(path).open("rb") as file:
            begin = file.read(_SCRIPT_MAX)
    except OSError:
        return ""
    return begin.decode(errors="replace") if begin.startswith(b"#!") else ""
