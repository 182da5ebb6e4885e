# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bills of materials."""

from __future__ import annotations

import json

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image import sbom

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
BASH = {
    "kind": "deb",
    "name": "bash",
    "version": "5.2.15-2+b7",
    "arch": "amd64",
    "hash": f"sha256:{DIGEST}",
    "size": 5,
    "uri": "http://archive.ubuntu.com/ubuntu/pool/bash.deb",
    "source": "",
}
TOOL = {**BASH, "kind": "program", "name": "$(id) tool", "version": "", "arch": "", "uri": ""}


def test_components():
    bom = json.loads(sbom.make({"digest": DIGEST, "components": [BASH, TOOL]}, "image.squashfs"))
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    purls = {one["name"]: one["purl"] for one in bom["components"]}
    assert purls == {
        "bash": "pkg:deb/ubuntu/bash@5.2.15-2%2Bb7?arch=amd64",
        "$(id) tool": "pkg:generic/%24%28id%29%20tool",
    }
    (dependencies,) = (one["dependsOn"] for one in bom["dependencies"] if one["ref"] == "image")
    assert len(dependencies) == 2


def test_the_same_image_has_the_same_bill():
    manifest = {"digest": DIGEST, "components": [BASH, {**BASH, "name": "other"}, BASH]}
    assert sbom.make(manifest, "x") == sbom.make(manifest, "x")
    assert sbom.make(manifest, "x") != sbom.make({**manifest, "digest": "0" * 64}, "x")


def test_a_file_is_written_once(tmp_path):
    path = str(tmp_path / "bom.json")
    assert sbom.write("text", path)
    assert not sbom.write("text", path)
    assert sbom.write("other", path)
    assert (tmp_path / "bom.json").read_text() == "other"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "purl"),
    [
        ("nicolaka/netshoot:v1", "pkg:oci/netshoot@sha256:%s?arch=amd64&repository_url=nicolaka/netshoot&tag=v1"),
        (
            "registry.example:5000/a/Tools",
            "pkg:oci/tools@sha256:%s?arch=amd64&repository_url=registry.example:5000/a/Tools&tag=latest",
        ),
    ],
)
def test_a_container_image_is_named_by_its_hash(name, purl):
    one = {**BASH, "kind": "container image", "name": name, "version": "", "uri": ""}
    (component,) = json.loads(sbom.make({"digest": DIGEST, "components": [one]}, "image"))["components"]
    assert component["purl"].replace("%3A", ":").replace("%2F", "/") == purl % DIGEST
