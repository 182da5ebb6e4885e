# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options by which containers are selected."""

    DOCUMENTATION = r"""
options:
  containers:
    description:
      - Names, ids, unique beginnings of ids, or shell globs over names.
      - A name or an id that matches no container is an error. A glob looks at running containers only.
    type: list
    elements: str
  labels:
    description:
      - Labels that a container must have, all of them.
      - A value of V(null) asks only that the label is there.
    type: dict
  query:
    description:
      - A JMESPath expression over the object that C(docker inspect) shows; a container is selected where it gives V(true).
      - In JMESPath C(!a.b) means C((!a).b); write C(a.b == `false`) instead.
      - Needs the Python library jmespath on the host.
    type: str
  docker_host:
    description:
      - URL of the Docker engine, for example V(unix:///run/user/1000/docker.sock).
      - Without it, the environment variable E(DOCKER_HOST) of the host, then V(unix:///var/run/docker.sock).
    type: str
  allow_empty:
    description:
      - Accept a selection that matches no container, instead of failing with the list of what runs.
    type: bool
    default: false
requirements:
  - Linux 5.8 or later on the host
  - Docker SDK for Python on the host (Debian's package C(python3-docker))
"""
