# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Selection by a JMESPath expression over the description that a runtime gives of a container."""

from __future__ import annotations

import traceback
from typing import Any, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.feature import Feature, find_way

JMESPATH_IMPORT_ERROR: str | None = None
try:
    import jmespath
    import jmespath.exceptions
except ImportError:
    JMESPATH_IMPORT_ERROR = traceback.format_exc()


def check_jmespath() -> Feature:
    """Return the feature that says if the library for queries is there, and otherwise how to get it."""
    if not JMESPATH_IMPORT_ERROR:
        return Feature("jmespath", True, "")
    return Feature(
        "jmespath", False, find_way("jmespath", "python3-jmespath"), "containers cannot be selected by query"
    )


def compile_query(expression: str, inspect: Callable[[Container], dict[str, Any]]) -> Callable[[Container], bool]:
    """Return a function that is true for a container if the JMESPath EXPRESSION is true over INSPECT(container), as of `docker inspect`.

    A container that is removed meanwhile is not selected. Raises ContainerError where EXPRESSION is not JMESPath;
    the function raises it where EXPRESSION fails on a container.
    """
    try:
        compiled = jmespath.compile(expression)
    except jmespath.exceptions.JMESPathError as error:
        reason = " ".join(str(error).split())  # the library's text has several lines
        raise ContainerError(f"query {expression!r} is not JMESPath: {reason}") from error

    def matches(container: Container) -> bool:
        try:
            return compiled.search(inspect(container)) is True
        except ContainerGoneError:
            return False
        except jmespath.exceptions.JMESPathError as error:
            raise ContainerError(f"query {expression!r} fails on container {container.name}: {error}") from error

    return matches
