# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts of containers, users and traces in our messages: a terminal must not obey them, and a reader must not be deceived."""

from __future__ import annotations


def escape(text: str) -> str:
    r"""TEXT in one line, with what is not printable shown as \n, \x1b or \u202e: control characters, those that turn the direction of
    writing or are not seen, and lone surrogates."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def escape_lines(text: str) -> str:
    """TEXT of a program that we have run, shown as escape does, but for line feeds and tabs, which stay."""
    return "".join(one if one in "\n\t" else escape(one) for one in text)


def escape_surrogates(text: str) -> str:
    r"""TEXT with lone surrogates shown as \udcff: names of files and texts of manifests may hold them, and readers of JSON refuse them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
