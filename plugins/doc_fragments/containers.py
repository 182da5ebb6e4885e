# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options that select containers."""

    DOCUMENTATION = r"""
options:
  containers:
    description:
      - Containers to select, of any runtime on the host - Docker, Podman (the host's and its users'), containerd, CRI-O, Kubernetes,
        plain runc or crun, LXC, systemd-nspawn.
      - Each entry is a name, an id of at least twelve digits, or a shell glob over names. A glob matches running containers only. Fewer
        digits do not select by id, because V(db) or V(cafe) may be a name and would select the wrong container where that name is missing.
      - V(RUNTIME:NAME) looks in one runtime only, for example V(podman:api). The runtimes are C(docker), C(podman), C(containerd),
        C(cri-o), C(runc), C(crun), C(lxc) and C(systemd-nspawn). Where Podman serves Docker's socket (package podman-docker), its
        containers belong to C(podman), and V(docker:api) selects them, too.
      - V(NAMESPACE/POD/CONTAINER) selects a container of a pod, for example V(shop/api-*/app).
      - V(pid:NUMBER) selects the process with that number and the namespaces that it is in, whoever created them.
      - V(UID/NAME) selects a container that a user of the host runs, as with rootless Podman, for example V(1000/api), V(1000/api-*) or
        V(podman:1000/api). Without a user's number, names, ids, globs, O(labels) and O(query) neither select such a container nor
        become ambiguous because of it, since users choose names, ids and labels as they like.
      - A name or an id that matches no container, or several, fails the task before it changes any container. O(allow_empty) accepts
        one that matches none.
    type: list
    elements: str
  labels:
    description:
      - Labels that a container must have, all of them. A value of V(null) accepts any value of that label.
      - Alone they select among the containers that root runs. With O(containers) they select among the containers named there.
      - For containers without an engine (containerd, plain runc or crun) the annotations count as labels.
    type: dict
  query:
    description:
      - JMESPath expression that must be V(true) for a container. It sees the object that C(docker inspect) or C(podman inspect) shows. For
        other runtimes the object has C(Id), C(Name), C(State), C(Config), C(Annotations) and C(Bundle).
      - Alone it selects among the containers that root runs. With O(containers) it selects among the containers named there.
      - JMESPath reads V(!a.b) as V((!a\).b). Write V(a.b == `false`) instead.
      - Requires the Python library jmespath on the host.
    type: str
  docker_host:
    description:
      - URL of an engine that speaks Docker's API, for example V(unix:///run/user/1000/docker.sock). That engine is then the only runtime.
      - By default Docker is found as the C(docker) command finds it - by the host's environment variables E(DOCKER_HOST) and
        E(DOCKER_CONTEXT), by the docker context of the task's user, then at V(unix:///var/run/docker.sock).
      - For an engine at V(tcp://HOST) TLS is configured by E(DOCKER_TLS_VERIFY) and E(DOCKER_CERT_PATH), or by the docker context. The
        task's C(environment) may set these variables.
      - Each answer of an engine may take 60 seconds, or as many as E(DOCKER_TIMEOUT) has on the host. A task's C(environment) may raise it for
        slow hosts.
      - An engine whose socket a user of the host can replace counts as that user's. The module asks it as that user, and trusts its answers
        only for processes in that user's namespaces. Its containers are selected without the user's number.
    type: str
  allow_empty:
    description:
      - Accept a selection that matches no container, and names and ids that match none. Otherwise the task fails and lists the running
        containers. Use it for a group of hosts of which some lack the container.
      - A name that matches several containers is still an error.
    type: bool
    default: false
requirements:
  - Linux 5.8 or later on the host
  - Docker SDK for Python on the host, for Docker's containers (Debian's package C(python3-docker))
"""
