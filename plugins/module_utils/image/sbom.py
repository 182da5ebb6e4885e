# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a manifest's components as a software bill of materials, CycloneDX 1.6 in JSON."""

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
    """Return the bill of materials of the image NAME with MANIFEST as JSON. The same image gives the same text."""
    image = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=manifest["digest"][:12],
        bom_ref="image",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=manifest["digest"])],
    )
    components = [_describe(entry, f"{number:04d}") for number, entry in enumerate(manifest["components"])]
    bom = Bom(components=components, serial_number=uuid.uuid5(uuid.NAMESPACE_OID, manifest["digest"]))
    bom.metadata.timestamp = datetime.fromtimestamp(FILE_TIME, timezone.utc)
    bom.metadata.component = image
    bom.register_dependency(image, components)
    return str(JsonV1Dot6(bom).output_as_string(indent=1)) + "\n"


def _describe(entry: dict[str, Any], reference: str) -> Any:
    kind = _PURL_TYPES.get(entry["kind"], "generic")
    purl = _make_image_purl(entry) if kind == "oci" else _make_purl(kind, entry)
    return Component(
        type=ComponentType.LIBRARY if kind != "oci" else ComponentType.CONTAINER,
        name=entry["name"],
        version=entry["version"] or None,
        bom_ref=f"{reference}-{entry['name']}",
        purl=purl,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry["hash"].partition(":")[2])],
        properties=[Property(name="crashcart:kind", value=entry["kind"])],
    )


def _make_purl(kind: str, entry: dict[str, Any]) -> Any:
    namespace = None
    if kind == "deb":
        namespace = "ubuntu" if "ubuntu" in entry["uri"] else "debian"
    qualifiers = {"arch": entry["arch"]} if entry["arch"] else None
    return PackageURL(
        type=kind, namespace=namespace, name=entry["name"], version=entry["version"] or None, qualifiers=qualifiers
    )


def _make_image_purl(entry: dict[str, Any]) -> Any:
    """Return the package URL of a container image, from the last part of its name, its hash and its repository."""
    repository, _at, _digest = entry["name"].partition("@")
    folder, slash, last = repository.rpartition("/")
    name, _colon, tag = last.partition(":")
    qualifiers = {"arch": entry["arch"], "tag": tag or "latest", "repository_url": f"{folder}{slash}{name}"}
    return PackageURL(type="oci", name=name.lower(), version=entry["hash"], qualifiers=qualifiers)


def write(text: str, path: str) -> bool:
    """Write TEXT to the file PATH unless it holds TEXT already. Return True if the file was written."""
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
