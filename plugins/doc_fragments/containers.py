# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options by which containers are selected."""

    DOCUMENTATION = r"""
options:
  containers:
    description:
      - Names, ids, twelve or more digits of ids, or shell globs over names, of containers of any runtime on the host - Docker, Podman (the
        host's and its users'), containerd, CRI-O, Kubernetes, plain runc or crun, LXC, systemd-nspawn.
      - Fewer digits of an id mean nothing. They may read like a name, as V(db) or V(cafe), and then another container would be taken where there
        is none of that name.
      - A runtime's name and a colon before it look in that runtime only, for example V(podman:api). The names are C(docker),
        C(podman), C(containerd), C(cri-o), C(runc), C(crun), C(lxc) and C(systemd-nspawn). Where Podman's service is in the place of
        Docker's, as the package podman-docker puts it, its containers are C(podman)'s, and V(docker:api) means them, too.
      - A container of a pod is called C(NAMESPACE/POD/CONTAINER), for example V(shop/api-*/app).
      - C(pid:NUMBER) is the process with that number and the namespaces it is in, whoever has made them.
      - A name or an id that matches no container, or several, is an error, and then nothing is done to the others either; see
        O(allow_empty). A glob looks at running containers only.
      - A container of a user of the host, as rootless Podman runs it, is selected only where the user is named, by number, as in
        V(podman:1000/api), V(1000/api), or V(1000/api-*). Users choose names, ids and labels as they like, so no name, id or glob without a
        user, no label and no query selects what a user runs, or is ambiguous because of it.
    type: list
    elements: str
  labels:
    description:
      - Labels that a container must have, all of them. Alone they select among what root runs; with O(containers), among what that
        selects. Below an engine, where containerd's or plain containers are found, annotations are the labels.
      - A value of V(null) asks only that the label is there.
    type: dict
  query:
    description:
      - A JMESPath expression over the object that C(docker inspect) shows, or C(podman inspect); a container is selected where it gives
        V(true). Alone it selects among what root runs; with O(containers), among what that selects. Of the other runtimes' containers
        that object has C(Id), C(Name), C(State), C(Config), and C(Annotations) and C(Bundle).
      - In JMESPath C(!a.b) means C((!a).b); write C(a.b == `false`) instead.
      - Needs the Python library jmespath on the host.
    type: str
  docker_host:
    description:
      - URL of an engine that speaks Docker's API, for example V(unix:///run/user/1000/docker.sock). With it that engine is the only runtime.
      - At a socket that a user can put another one in the place of, the engine is that user's. It is asked as that user, and believed of
        processes in that user's namespaces. Whoever names it here selects its containers as if they were root's.
      - Without it Docker is looked for as C(docker) does, by the environment variables E(DOCKER_HOST) and E(DOCKER_CONTEXT) of the host, by the
        docker context that the task's user has chosen, then at V(unix:///var/run/docker.sock).
      - TLS for an engine at V(tcp://…) is by E(DOCKER_TLS_VERIFY) and E(DOCKER_CERT_PATH), or by the docker context. A task's C(environment) may
        set these variables.
    type: str
  allow_empty:
    description:
      - Accept a selection that matches no container, and names and ids that match none, instead of failing with the list of what runs.
        So one task serves a group of hosts of which some lack the container.
      - A name that may mean several containers stays an error.
    type: bool
    default: false
requirements:
  - Linux 5.8 or later on the host
  - Docker SDK for Python on the host for Docker's containers (Debian's package C(python3-docker))
"""
