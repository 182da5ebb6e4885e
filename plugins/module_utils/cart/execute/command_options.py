# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of a command as users write them, turned into the command that is to be run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import (
    CONTAINER,
    HOST,
    HOST_NAMESPACES,
    NAMESPACES,
    TOOLS,
    Command,
    ExecutionError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities


@dataclass(frozen=True)
class CommandOptions:
    """The options of a command as a module takes them; CAPABILITIES are names."""

    argv: list[str] | None = None
    cmd: str | None = None
    env: Mapping[str, Any] = field(default_factory=dict)
    stdin: str | None = None
    chdir: str = "/"
    timeout_s: float | None = None
    user: str | None = None
    image: str | None = None
    namespaces: Sequence[str] | None = None
    rights: str = TOOLS
    capabilities: Sequence[str] | None = None
    trust_container: bool = False


def parse_command(options: CommandOptions) -> Command:
    """Return the Command that OPTIONS mean; raises ExecutionError for options that do not go together."""
    words, variables = (
        _parse_words(options),
        {str(name): _spell(str(name), value) for name, value in options.env.items()},
    )
    texts = [*words, *variables, *variables.values(), options.chdir]
    if any("\0" in text for text in texts) or any("=" in name or not name for name in variables):
        raise ExecutionError(
            "a command, a folder or a variable holds a NUL character, or a variable's name is empty or holds '='"
        )
    return Command(
        argv=tuple(words),
        env=variables,
        stdin=None if options.stdin is None else options.stdin.encode("utf-8", "surrogateescape"),
        chdir=options.chdir,
        timeout_s=options.timeout_s,
        user=options.user,
        image=options.image,
        namespaces=tuple(_find_namespaces(options)),
        rights=options.rights,
        capabilities=None if options.capabilities is None else _parse_capabilities(options.capabilities),
        trust_container=options.trust_container,
    )


def _parse_words(options: CommandOptions) -> list[str]:
    try:
        words = options.argv if options.argv is not None else shlex.split(options.cmd or "")
    except ValueError as error:
        raise ExecutionError(f"cmd {options.cmd!r} cannot be split into words: {error}") from error
    if not words or not words[0]:
        raise ExecutionError("the command is empty: give a program's name first")
    return words


def _find_namespaces(options: CommandOptions) -> Sequence[str]:
    """Return the namespaces that a command of OPTIONS enters; raises ExecutionError where its rights do not go with them."""
    namespaces, rights = options.namespaces, options.rights
    if namespaces is not None and not namespaces:
        raise ExecutionError(f"namespaces: name at least one of {', '.join(NAMESPACES)}, or leave the option out")
    if rights == CONTAINER and (namespaces is not None or options.capabilities is not None):
        raise ExecutionError(
            "rights=container: such a command has all of the container's namespaces and the capabilities of its first process; leave"
            " out `namespaces` and `capabilities`, or choose other rights"
        )
    if rights == TOOLS and namespaces is not None and not {"mnt", "pid"} <= set(namespaces):
        raise ExecutionError(
            "namespaces: without mnt or pid a command sees the host's files or processes, which takes rights=host"
        )
    if namespaces is None:
        return HOST_NAMESPACES if rights == HOST else NAMESPACES
    # The user namespace is always entered: outside of it the container's capabilities would be the host's.
    return [*namespaces, *({"user"} - set(namespaces))] if rights == TOOLS else namespaces


def _spell(name: str, value: Any) -> str:
    """Return VALUE of the variable NAME as YAML spells it."""
    if isinstance(value, (str, bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if value is None:
        raise ExecutionError(f"env: {name} has no value; leave it out, or give it an empty text")
    raise ExecutionError(f"env: {name} is a {type(value).__name__}; a variable is a text, such as the value in quotes")


def _parse_capabilities(names: Sequence[str]) -> int:
    try:
        return capabilities.parse_names(names)
    except ValueError as error:
        raise ExecutionError(
            f"capabilities: Linux has none called {str(error)!r}; it has {', '.join(capabilities.NAMES)}"
        ) from error
