# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what the options of an ansible-playbook mean for later runs of other playbooks, which have none of these options."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

# Option → the variable of the environment that means it. Paths are made absolute.
_TEXTS = {
    "remote_user": "ANSIBLE_REMOTE_USER",
    "ssh_common_args": "ANSIBLE_SSH_COMMON_ARGS",
    "ssh_extra_args": "ANSIBLE_SSH_EXTRA_ARGS",
}
_PATHS = {
    "private_key_file": "ANSIBLE_PRIVATE_KEY_FILE",
    "become_password_file": "ANSIBLE_BECOME_PASSWORD_FILE",
    "connection_password_file": "ANSIBLE_CONNECTION_PASSWORD_FILE",
}
_QUESTIONS = {
    "ask_pass": "the password of a connection (-k)",
    "become_ask_pass": "the password of become (-K)",
    "ask_vault_pass": "the password of a vault (-J)",
}
_PROMPTS = ("prompt", "prompt_ask_vault_pass")  # sources of a vault's password that ask


def make_environment(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of the environment that mean the same as OPTIONS, the parsed options of ansible-playbook.

    What an option asks a person for is not among them.
    """
    found = {variable: str(options[name]) for name, variable in _TEXTS.items() if options.get(name)}
    found.update({variable: _make_absolute(options[name]) for name, variable in _PATHS.items() if options.get(name)})
    vaults = [f"{label}@{_make_absolute(source)}" for label, source in _gen_vaults(options) if source not in _PROMPTS]
    return {**found, **({"ANSIBLE_VAULT_IDENTITY_LIST": ",".join(vaults)} if vaults else {})}


def list_questions(options: Mapping[str, Any]) -> list[str]:
    """Return what OPTIONS, the parsed options of ansible-playbook, ask a person for, in words."""
    asked = {words: bool(options.get(name)) for name, words in _QUESTIONS.items()}
    asked["the password of a vault (-J)"] |= any(source in _PROMPTS for _label, source in _gen_vaults(options))
    return [words for words, is_asked in asked.items() if is_asked]


def _gen_vaults(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the label and the source of each vault's password in OPTIONS."""
    for text in options.get("vault_ids") or ():
        label, _at, source = str(text).rpartition("@")
        yield label or "default", source
    for path in options.get("vault_password_files") or ():
        yield "default", str(path)


def _make_absolute(path: Any) -> str:
    return os.path.abspath(os.path.expanduser(str(path)))
