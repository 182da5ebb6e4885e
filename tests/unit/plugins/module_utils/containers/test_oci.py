# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of containers below an engine."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.oci import make_name


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({}, ""),
        ({"org.opencontainers.image.title": "web"}, ""),
        (
            {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.container-name": "app",
                "io.kubernetes.cri.sandbox-name": "api-7d9f",
                "io.kubernetes.cri.sandbox-namespace": "shop",
            },
            "shop/api-7d9f/app",
        ),
        (
            {
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-name": "api-7d9f",
                "io.kubernetes.cri.sandbox-namespace": "shop",
            },
            "shop/api-7d9f/POD",
        ),
        (
            {
                "io.kubernetes.cri-o.ContainerType": "container",
                "io.kubernetes.container.name": "app",
                "io.kubernetes.pod.name": "api-7d9f",
                "io.kubernetes.pod.namespace": "shop",
            },
            "shop/api-7d9f/app",
        ),
        ({"io.kubernetes.cri.container-name": "app", "io.kubernetes.cri.sandbox-name": "old"}, "default/old/app"),
    ],
)
def test_names_of_containers_of_pods(annotations, name):
    assert make_name(annotations) == name
