# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Import numba, which compiles the pass over a trace; only the controller needs it.

Without numba, a module can still load and report that.
"""

from __future__ import annotations

import traceback
from typing import Any, Callable, TypeVar

NUMBA_IMPORT_ERROR: str | None = None
try:
    import numba
except ImportError:
    NUMBA_IMPORT_ERROR = traceback.format_exc()
    numba = None

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compile_part(function: _Function) -> _Function:
    """Return FUNCTION compiled as a part of the pass. It is compiled together with the function that calls it."""
    return function if numba is None else numba.njit(function, error_model="numpy", _nrt=False)


def compile_inline(function: _Function) -> _Function:
    """Return FUNCTION compiled into each of its callers: for small parts that each event needs."""
    return function if numba is None else numba.njit(function, error_model="numpy", _nrt=False, forceinline=True)


def compile_whole(function: _Function) -> _Function:
    """Return FUNCTION compiled as a whole with its parts. The machine code is kept below NUMBA_CACHE_DIR."""
    if numba is None:
        return function
    compiled: _Function = numba.njit(function, cache=True, error_model="numpy", _nrt=False)
    _load_at_once(compiled)
    return compiled


def _load_at_once(compiled: Any) -> None:
    """Let numba load the kept code of COMPILED without getting ready to compile, which takes a quarter of a second.

    A compilation gets ready by itself, and code without memory management (_nrt) needs nothing of that to run. A version of numba in which
    this method has another name loads as it always does.
    """
    cache: Any = getattr(compiled, "_cache", None)
    if hasattr(cache, "_load_overload"):
        cache.load_overload = cache._load_overload


__all__ = ["NUMBA_IMPORT_ERROR", "compile_inline", "compile_part", "compile_whole"]
