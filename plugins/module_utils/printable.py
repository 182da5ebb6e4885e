# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Escape texts of containers, users and traces for our messages, so that they neither control a terminal nor deceive a reader."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""Return TEXT on one line, with each character that is not printable escaped as \n, \x1b or \u202e.

    These are control characters, invisible ones, marks that reverse the direction of writing, and lone surrogates.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def mask(text: str) -> str:
    """Return TEXT with a question mark for each character that is not printable, so that columns keep their widths."""
    return "".join(character if character.isprintable() else "?" for character in text)


def escape_lines(text: str) -> str:
    """Return TEXT, a program's output, escaped as by escape(), but with its line feeds and tabs as they are."""
    return "".join(character if character in "\n\t" else escape(character) for character in text)


def escape_surrogates(text: str) -> str:
    r"""Return TEXT with lone surrogates escaped as \udcff.

    Names of files and texts of manifests may hold lone surrogates, and readers of JSON refuse them.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
