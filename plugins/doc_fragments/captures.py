# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of modules that bring captures to the controller."""

    DOCUMENTATION = r"""
options:
  format:
    description:
      - What to write. V(dat) writes a C(trace.dat).
      - V(text) also writes C(STAMP.txt) with one line for each event, as C(trace-cmd report) does, and adds the container's process ids to
        the host's. The controller makes this file and needs numpy and numba for it.
    type: str
    choices: [dat, text]
    default: dat
  dat_version:
    description:
      - Version of the C(trace.dat). V(7) is compressed with zstd where the host has libzstd, and uncompressed elsewhere. V(6) is always
        uncompressed, for C(trace-cmd) before 3.0.
    type: int
    choices: [6, 7]
    default: 7
  _parts:
    description:
      - Internal. Names of segments, each with the number of its bytes on the controller, set by the action plugin.
    type: dict
    default: {}
  _broken:
    description:
      - Internal. The transfer on the host that broke.
    type: str
    default: ""
  _stamps:
    description:
      - Internal. Stamps of the captures on the controller.
    type: list
    elements: str
    default: []
  _methods:
    description:
      - Internal. Compressions that the controller can read.
    type: list
    elements: str
    default: []
"""
