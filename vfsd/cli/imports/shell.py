"""The commands in a shell script or in supervisord's configuration, found without running anything."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from vfsd import files
from vfsd.cli.errors import CliError

SHELL = "a shell would put something in its place"
_SUPERVISORD = re.compile(r"^\[program:", re.MULTILINE)
_BLANK = re.compile(r"(?:[ \t\r]|\\\n)+")
_COMMENT = re.compile(r"#[^\n]*")
_REDIRECTION = re.compile(r"\d*(<<-?(?!<)|<<<|&>>?|<>|[<>]&|>\||>>|[<>](?!\())")
_OPERATOR = re.compile(r"[();|&\n]")
_PLAIN = re.compile(r"[^ \t\r\n'\"\\$`();|&<>]+")
_SINGLE_QUOTED = re.compile(r"'([^']*)'")
_ESCAPED_IN_QUOTES = '$`"\\'
"""What a backslash between double quotes takes the meaning of; others keep it."""
_CLOSING = {"(": ")", "{": "}"}


def is_unknown(text: str) -> bool:
    """Whether a word holds what a shell would replace: a variable, what a command prints, or somebody's home."""
    return text.startswith("~") or any(mark in text for mark in ("$", "`", "<(", ">("))


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, as a shell would have them; what it would replace stays as it is written.

    Words that end in NUL, as those in /proc/PID/cmdline do, are one command.

    :raise CliError: the quotes do not match.
    """
    if "\0" in text:
        yield text.removesuffix("\0").split("\0")
    elif _SUPERVISORD.search(text):
        yield from _supervised(text)
    else:
        for words in _Reader(text).commands():
            yield words
            if configuration := _configuration(words):
                yield from _supervised(configuration)


class _Reader:
    """A script that is being read, word by word."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._documents: list[str] = []
        """Lines that end what a command is given on its standard input."""

    def commands(self) -> Iterator[list[str]]:
        """The words of each command. Where its input comes from and its output goes to is none of them."""
        words: list[str] = []
        while self._at < len(self._text):
            if self._skip(_BLANK) or self._skip(_COMMENT):
                continue
            if redirection := _REDIRECTION.match(self._text, self._at):
                self._at = redirection.end()
                self._skip(_BLANK)
                where = self._word()
                if redirection[1] in ("<<", "<<-"):
                    self._documents.append(where)
            elif operator := _OPERATOR.match(self._text, self._at):
                self._at = operator.end()
                if words:
                    yield words
                words = []
                if operator[0] == "\n":
                    self._skip_documents()
            else:
                words.append(self._word())
        if words:
            yield words

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return match is not None

    def _skip_documents(self) -> None:
        for last in self._documents:
            end = re.compile(rf"^\t*{re.escape(last)}$\n?", re.MULTILINE).search(self._text, self._at)
            self._at = end.end() if end else len(self._text)
        self._documents.clear()

    def _word(self) -> str:
        parts: list[str] = []
        while (part := self._part()) is not None:
            parts.append(part)
        return "".join(parts)

    def _part(self) -> str | None:
        """The next part of a word, which may be empty between quotes; None at its end."""
        text, begin = self._text, self._at
        if match := _PLAIN.match(text, begin):
            self._at = match.end()
            return match[0]
        if text[begin : begin + 2] in ("<(", ">("):
            return self._replaced()
        match text[begin : begin + 1]:
            case "'":
                quoted = _SINGLE_QUOTED.match(text, begin)
                if quoted is None:
                    raise _unclosed("'")
                self._at = quoted.end()
                return quoted[1]
            case '"':
                return self._double_quoted()
            case "\\":
                self._at = begin + 2
                return (text[begin + 1 : begin + 2] or "\\").strip("\n")
            case "$" | "`":
                return self._replaced()
        return None

    def _double_quoted(self) -> str:
        self._at += 1
        parts: list[str] = []
        while True:
            letter = self._text[self._at : self._at + 1]
            match letter:
                case '"':
                    self._at += 1
                    return "".join(parts)
                case "":
                    raise _unclosed('"')
                case "$" | "`":
                    parts.append(self._replaced())
                case "\\":
                    escaped = self._text[self._at + 1 : self._at + 2]
                    if escaped != "\n":
                        parts.append(escaped if escaped in _ESCAPED_IN_QUOTES else letter + escaped)
                    self._at += 2
                case _:
                    parts.append(letter)
                    self._at += 1

    def _replaced(self) -> str:
        """What a shell replaces, as it is written: `$`, `${…}`, `$(…)`, `<(…)` or what is between backquotes."""
        text, begin = self._text, self._at
        self._at += 1
        if text[begin] == "`":
            closing = ["`"]
        elif (opening := text[self._at : self._at + 1]) in _CLOSING:
            closing = [_CLOSING[opening]]
            self._at += 1
        else:
            return text[begin]
        while closing:
            letter = text[self._at : self._at + 1]
            self._at += 1
            if not letter:
                raise _unclosed(text[begin : begin + 2])
            if letter == "\\":
                self._at += 1
            elif letter == closing[-1]:
                closing.pop()
            elif closing[-1] == "'":
                pass
            elif letter in "'\"":
                closing.append(letter)
            elif letter in _CLOSING and closing[-1] != '"':
                closing.append(_CLOSING[letter])
        return text[begin : self._at]


def _unclosed(what: str) -> CliError:
    return CliError(
        f"it can't be read as a shell reads it: {what} is not closed", "look at the quotes in it."
    )


def _supervised(text: str) -> Iterator[list[str]]:
    """The commands of supervisord's programs; of those that are scripts, what these run."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise CliError(f"it is no configuration of supervisord: {error.message}") from None
    for section in parser.sections():
        command = parser.get(section, "command", fallback="")
        for words in _Reader(command).commands() if section.startswith("program:") else ():
            script = _file(words[0])
            yield from _Reader(script).commands() if script.startswith("#!") else [words]


def _configuration(words: list[str]) -> str:
    """What a command gives supervisord to read, as microvm.nix's virtiofsd-run does; "" if it starts none."""
    if not any(PurePath(word).name == "supervisord" for word in words):
        return ""
    after = (words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-c", "--configuration"))
    return _file(next(after, ""))


def _file(path: str) -> str:
    """What is in a file that is named; "" if it is no text."""
    try:
        return files.read_text(Path(path))
    except (OSError, UnicodeDecodeError, ValueError):
        return ""
