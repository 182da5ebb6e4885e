# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Import numpy, which only the controller needs: where numpy is missing, a module can still load and report that."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

NUMPY_IMPORT_ERROR: str | None = None
try:
    import numpy as np
except ImportError:
    NUMPY_IMPORT_ERROR = traceback.format_exc()
    np = None  # type: ignore[assignment]  # modules check NUMPY_IMPORT_ERROR before they use numpy

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bytes = npt.NDArray[np.uint8]
    Times = npt.NDArray[np.uint64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["NUMPY_IMPORT_ERROR", "np"]
