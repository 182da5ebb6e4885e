# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let ansible-test make its virtual environments with PyPI alone.

ansible-test fetches get-pip from a site of its own unless its cache has it. This program puts a small script into the cache that
installs pip from its wheel. Usage: prepare_ansible_test.py PIP_VERSION…
"""

from __future__ import annotations

import os
import subprocess
import sys

_SCRIPT = """\
import sys
sys.path.insert(0, {wheel!r})
from pip._internal.cli.main import main
arguments = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
wanted = [] if any(word.startswith("pip==") for word in arguments) else ["pip=={version}"]
sys.exit(main(["install", "--upgrade", "--force-reinstall", *arguments, *wanted]))
"""


def main() -> None:
    """Put a script for each version of pip on the command line into ansible-test's cache."""
    cache = os.path.expanduser("~/.ansible/test/cache")
    os.makedirs(cache, exist_ok=True)
    for version in sys.argv[1:]:
        wheel = os.path.join(cache, f"pip-{version}-py3-none-any.whl")
        if not os.path.exists(wheel):
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, f"pip=={version}"], check=True
            )
        path = os.path.join(cache, f"get_pip_{version.replace('.', '_')}.py")
        with open(path, "w", encoding="utf-8") as file:
            file.write(_SCRIPT.format(wheel=wheel, version=version))


if __name__ == "__main__":
    main()
