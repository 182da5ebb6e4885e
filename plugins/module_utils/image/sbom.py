# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest's components as a software bill of materials, CycloneDX 1.6 in JSON."""

from __future__ import annotations

import os
import traceback
import uuid
from datetime import datetime, timezone
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.image.filesystems import FILE_TIME

CYCLONEDX_IMPORT_ERROR: str | None = None
try:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL
except ImportError:
    CYCLONEDX_IMPORT_ERROR = traceback.format_exc()

# Kind of a component → type of a package URL, of https://github.com/package-url/purl-spec.
_PURL_TYPES = {"deb": "deb", "rpm": "rpm", "container image": "oci"}


def make(manifest: dict[str, Any], name: str) -> str:
    """The bill of materials of the image NAME with MANIFEST; the same for the same image."""
    image = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=manifest["digest"][:12],
        bom_ref="image",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=manifest["digest"])],
    )
    components = [_describe(one, f"{number:04d}") for number, one in enumerate(manifest["components"])]
    bom = Bom(components=components, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, manifest["digest"]))
    bom.metadata.timestamp = datetime.fromtimestamp(FILE_TIME, timezone.utc)
    bom.metadata.component = image
    bom.register_dependency(image, components)
    return str(JsonV1Dot6(bom).output_as_string(indent=1)) + "\n"


def _describe(one: dict[str, Any], reference: str) -> Any:
    kind = _PURL_TYPES.get(one["kind"], "generic")
    purl = _make_image_purl(one) if kind == "oci" else _make_purl(kind, one)
    return Component(
        type=ComponentType.LIBRARY if kind != "oci" else ComponentType.CONTAINER,
        name=one["name"],
        version=one["version"] or None,
        bom_ref=f"{reference}-{one['name']}",
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one["hash"].partition(":")[2])],
        properties=[Property(name="crashcart:kind", value=one["kind"])],
    )


def _make_purl(kind: str, one: dict[str, Any]) -> Any:
    namespace = None
    if kind == "deb":
        namespace = "ubuntu" if "ubuntu" in one["uri"] else "debian"
    qualifiers = {"arch": one["arch"]} if one["arch"] else None
    return PackageURL(
        type=kind, namespace=namespace, name=one["name"], version=one["version"] or None, qualifiers=qualifiers
    )


def _make_image_purl(one: dict[str, Any]) -> Any:
    """A package URL of a container image: its last name, its hash, and where it is from."""
    repository, _at, _digest = one["name"].partition("@")
    folder, slash, last = repository.rpartition("/")
    name, _colon, tag = last.partition(":")
    qualifiers = {"arch": one["arch"], "tag": tag or "latest", "repository_url": f"{folder}{slash}{name}"}
    return PackageURL(type="oci", name=name.lower(), version=one["hash"], qualifiers=qualifiers)


def write(text: str, path: str) -> bool:
    """See to it that file PATH holds TEXT; whether it did not."""
    try:
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return False
    except FileNotFoundError:
        pass
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(temporary, path)
    return True
