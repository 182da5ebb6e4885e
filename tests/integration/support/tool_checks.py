# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that the tools work with their default rights in containers of any runtime."""

from __future__ import annotations

import re
import signal
from typing import Any

from support import host


def execute(name: str, *argv: str, **options: Any) -> str:
    """Run the command ARGV in container NAME and return its standard output."""
    wish = {"containers": [name], "argv": list(argv), "timeout": "60s", **options}
    return str(host.execute(**wish)[0]["stdout"])


def check_tools(name: str, *, capturer: str | None = None, **options: Any) -> None:
    """Check strace, gdb, tcpdump, ss and lsof in container NAME.

    OPTIONS are crashcart_exec's for a server whose socket ss and lsof have to show. CAPTURER is the user who runs tcpdump. As root
    tcpdump gives up its groups, which needs CAP_SETGID.
    """
    engine = {key: value for key, value in options.items() if key == "docker_host"}
    strace = ["strace", "-f", "-o", "/dev/stdout", "-p", "1"]
    said = execute(name, "timeout", "-s", "INT", "1", *strace, **engine)
    assert re.search(r"^1 +[a-z_0-9]+\(|^1 +(<\.\.\.|restart_syscall)", said, re.MULTILINE), said
    said = execute(name, "gdb", "-batch", "-p", "1", "-ex", "backtrace", **engine)
    assert re.search(r"^#0 ", said, re.MULTILINE), said
    script = "tcpdump -i lo -c 1 -n icmp & sleep 1; ping -c 1 127.0.0.1 >/dev/null; wait"
    who = {} if capturer is None else {"user": capturer}
    assert "ICMP echo request" in execute(name, "bash", "-c", script, **engine, **who)
    server = {"containers": [name], "argv": ["socat", "TCP-LISTEN:4242", "-"], "timeout": "60s", **options}
    listening = host.start_module("crashcart_exec", **server)
    try:
        host.wait_until(lambda: "4242" in execute(name, "ss", "-tlnH", **engine))
        assert 'users:(("socat"' in execute(name, "ss", "-tlnpH", **engine)
        assert re.search(r"socat.*TCP \*:4242", execute(name, "lsof", "-n", "-P", "-i", **engine))
    finally:
        listening.send_signal(signal.SIGKILL)
        listening.communicate()
