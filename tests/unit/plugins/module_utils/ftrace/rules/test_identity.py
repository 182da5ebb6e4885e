# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import identity
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.identity import Source, identify

ID = "3f4e" * 16
GROUP = f"/sys/fs/cgroup/system.slice/docker-{ID}.scope"


def make(**parts):
    return {name: json.dumps(part).encode() for name, part in parts.items()}


def test_dockers_own_file_has_name_image_and_labels():
    dockers = {"Name": "/api", "Config": {"Image": "shop/api:7", "Labels": {"tier": "front"}}}
    found = identify(GROUP, Source(5, "/run/x", **make(spec={}, dockers=dockers)))
    one = found.container
    assert (one.id, one.name, one.image, one.labels, one.runtime) == (
        ID,
        "api",
        "shop/api:7",
        {"tier": "front"},
        "docker",
    )
    assert found.has_labels


def test_a_container_of_a_pod_has_the_pods_names():
    annotations = {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "web",
        "io.kubernetes.cri.sandbox-name": "shop-1",
        "io.kubernetes.cri.sandbox-namespace": "prod",
        "io.kubernetes.cri.image-name": "shop/web:7",
    }
    one = identify(
        f"/kubepods/cri-containerd-{ID}.scope", Source(5, "/run/x", **make(spec={"annotations": annotations}))
    ).container
    assert (one.id, one.name, one.image, one.runtime) == (ID, "prod/shop-1/web", "shop/web:7", "containerd")


def test_a_container_of_ctr_is_called_as_its_bundle():
    one = identify(
        "/default/web", Source(5, "/run/containerd/default/web", **make(spec={"annotations": None}))
    ).container
    assert (one.id, one.name, one.labels, one.runtime) == ("web", "web", {}, "containerd")


def test_podmans_monitor_has_the_name_and_no_labels():
    words = (
        "/usr/bin/conmon",
        "--api-version",
        "1",
        "-c",
        ID,
        "-u",
        ID,
        "-r",
        "/usr/bin/crun",
        "-b",
        "/b",
        "-n",
        "web",
    )
    spec = {"annotations": {"io.container.manager": "libpod"}}
    found = identify(f"/machine.slice/libpod-{ID}.scope", Source(words=words, **make(spec=spec)))
    assert (found.container.id, found.container.name, found.container.runtime) == (ID, "web", "podman")
    assert not found.has_labels


def test_runc_tells_annotations_as_labels(tmp_path):
    folder = tmp_path / "runc" / "web"
    folder.mkdir(parents=True)
    found = identify("/web", Source(folder=str(folder)))
    assert (found.container.name, found.container.runtime, found.has_labels) == ("web", "runc", False)
    (folder / "state.json").write_text(json.dumps({"config": {"labels": ["bundle=/b", "tier=front", "odd"]}}))
    found = identify("/web", Source(folder=str(folder)))
    assert (found.container.labels, found.has_labels) == ({"tier": "front"}, True)


@pytest.mark.parametrize(
    "source",
    [
        Source(5, "/x", b"{"),
        Source(5, "/x", b"[]"),
        Source(5, "/x", b'{"annotations": 7}'),
        Source(5, "/x", b"{}", b"{}"),
        Source(5, "/x", b"{}", b'{"Name": 7, "Config": null}'),
        Source(5, "/x", b"{}", b'{"Name": "/a", "Config": {"Labels": {"a": 7}}}'),
        Source(words=("conmon",), spec=b"{}"),
    ],
)
def test_nonsense_is_nobody(source):
    assert identify(GROUP, source) is None


def test_dockers_folder_is_where_it_makes_the_files_of_a_container():
    mounts = [
        {"destination": "/etc/hostname", "source": "/etc/hostname"},  # a user's
        {"destination": "/etc/hosts", "source": f"/var/lib/docker/containers/{ID}/hosts"},
        {"destination": "/etc/resolv.conf", "source": f"/var/lib/docker/containers/{ID}/resolv.conf"},
        {"destination": "/proc", "source": "proc"},
    ]
    assert identity._list_dockers_folders({"mounts": mounts}) == ["/", "/var/lib/docker/containers"]
    assert identity._list_dockers_folders({"mounts": []}) == []
