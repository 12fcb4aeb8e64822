"""A real container engine for tests: a busybox image made from scratch, labelled containers, always removed.

`needs_engine` skips with its reason where no engine answers. Nothing is pulled: the image holds one static
busybox of this machine. Containers carry `remit.test=<uuid>`; whatever a test does, they are gone after it.
"""

import contextlib
import io
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
import requests.exceptions

IMAGE = "remit-test-busybox"
LABEL = "remit.test"
_DOCKERFILE = b'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox","--install","-s","/bin"]\nENV PATH=/bin\n'


def engine_missing() -> str | None:
    """Return why there is no engine to test with, or None when there is one."""
    busybox = shutil.which("busybox")
    if busybox is None:
        return "no busybox to make an image of (apt-get install busybox-static)"
    try:
        client = docker.APIClient(base_url=os.environ.get("DOCKER_HOST"), version="auto", timeout=10)
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        return f"no container engine answers: {str(error)[:120]}"
    client.close()
    return None


class Engine:
    """Containers of one test, made and removed together."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.mark = uuid.uuid4().hex
        self._networks: list[str] = []

    def run(self, script: str, *, name: str | None = None, wait: bool = True, **options: Any) -> Any:
        """Start `sh -c script` in a container of its own name; by default wait until it has ended."""
        container = self.create(script, name=name, **options)
        container.start()
        if wait:
            container.wait(timeout=60)
        return container

    def create(self, script: str, *, name: str | None = None, **options: Any) -> Any:
        """Make a container without starting it."""
        labels = {LABEL: self.mark, **options.pop("labels", {})}
        return self.client.containers.create(
            IMAGE,
            ["/bin/sh", "-c", script],
            name=name or f"remit-{self.mark[:8]}-{uuid.uuid4().hex[:6]}",
            labels=labels,
            network_mode=options.pop("network_mode", None if "network" in options else "none"),
            **options,
        )

    def network(self, name: str) -> Any:
        """Make a user-defined network."""
        network = self.client.networks.create(name, labels={LABEL: self.mark}, check_duplicate=True)
        self._networks.append(network.id)
        return network

    def remove_all(self) -> None:
        """Remove every container and network of this test."""
        for container in self.client.containers.list(all=True, filters={"label": f"{LABEL}={self.mark}"}):
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True, v=True)
        for network in self._networks:
            with contextlib.suppress(docker.errors.NotFound):
                self.client.networks.get(network).remove()


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """Give an engine with the test image in it; skip the test, with the reason, where there is none."""
    if reason := engine_missing():
        pytest.skip(reason)
    client = docker.from_env(timeout=60)
    try:
        _image(client)
        made = Engine(client)
        try:
            yield made
        finally:
            made.remove_all()
    finally:
        client.close()


def _image(client: Any) -> None:
    with contextlib.suppress(docker.errors.ImageNotFound):
        client.images.get(IMAGE)
        return
    busybox = Path(shutil.which("busybox") or "busybox").resolve().read_bytes()
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, data, mode in (("Dockerfile", _DOCKERFILE, 0o644), ("busybox", busybox, 0o755)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=IMAGE, rm=True)
