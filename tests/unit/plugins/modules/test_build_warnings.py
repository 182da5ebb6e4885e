# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Of which programs that will not work crashcart_build warns."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.modules import crashcart_build

MANIFEST = {
    "components": [{"name": "openssl", "uri": "http://x/openssl.deb"}, {"name": "ours", "uri": ""}],
    "tools": {"c_rehash": "openssl 3", "ours": "ours 1", "good": "ours 1"},
    "problems": [
        {"path": path, "reason": "its interpreter bin/perl is not in the image"}
        for path in ("bin/c_rehash", "sbin/ours", "lib/x.pl", "local/unknown")
    ],
}


def test_only_what_was_asked_for_by_its_name_is_warned_of():
    assert crashcart_build.list_broken(MANIFEST, ()) == ["sbin/ours", "local/unknown"]
    assert crashcart_build.list_broken(MANIFEST, ["openssl"]) == ["bin/c_rehash", "sbin/ours", "local/unknown"]
