"""Where an archive lies: a folder, or a bucket of an S3-compatible store. The one file that imports obstore.

A file is there whole or not at all. In a folder it is written beside, synced and renamed; in a bucket a put (in parts,
when it is large) is seen when it is complete. A manifest is created only: of two who archive at once one is refused.
All of this blocks.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from shared.errors import AlreadySaid, Malformed, NotFound, RemitError, Unavailable

S3_SCHEMES = ("s3", "s3a")
PART_BYTES = 8 * 1024 * 1024
TRIES = 5
TRIES_S = 30
CONNECT_S = 10
STAGING = ".part"
LOCK = ".lock"


class Place(Protocol):
    """Files by name, as `events/2026-11-24.parquet`. `NotFound` where there is none of a name."""

    where: str

    def names(self) -> list[str]:
        """Every file, sorted."""

    def read(self, name: str) -> bytes:
        """All of a small file."""

    def fetched(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """The file on this machine's disk, for a while."""

    def staged(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path of one's own at which a file may be written that is `put` next."""

    def put(self, name: str, path: Path) -> None:
        """The file at `path` under this name, instead of one that was there."""

    def create(self, name: str, data: bytes) -> None:
        """A new file; `AlreadySaid` when there is one."""

    def delete(self, name: str) -> None:
        """Take a file away that nothing names; none there is no error."""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keep others on this machine from writing here meanwhile."""


def place(where: str, *, make: bool = False) -> Place:
    """The place of this path or URL; `make` a folder that is not there yet. `NotFound`, or `Malformed`."""
    if not where.strip():  # a script's variable that is not set; as a path it would be this folder
        raise Malformed("an archive has a name: a folder, or s3://bucket/prefix", field="archive")
    scheme = urlsplit(where).scheme if "://" in where else ""
    if scheme in S3_SCHEMES:
        if not urlsplit(where).netloc:
            raise Malformed(f"{where} names no bucket: s3://bucket/prefix", field="archive")
        return Bucket(where)
    if scheme:
        raise Malformed(
            f"{scheme}:// is no place for an archive: name a folder, or s3://bucket/prefix", field="archive"
        )
    root = Path(where)
    if make:
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RemitError(f"{where} cannot be made: {error.strerror or error}", field="archive") from error
    elif not root.is_dir():
        raise NotFound(f"there is no archive at {root}", field="archive")
    return Folder(root)


class Folder:
    """A folder of this machine, or one that it has mounted."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.where = str(root)

    def names(self) -> list[str]:
        found = (path.relative_to(self._root) for path in self._root.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if not path.parts[0].startswith("."))

    def read(self, name: str) -> bytes:
        with self._told(name):
            return (self._root / name).read_bytes()

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        path = self._root / name
        if not path.is_file():
            raise NotFound(f"there is no {name} in {self.where}")
        yield path

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        folder = self._root / STAGING
        with self._told(name):
            folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{os.getpid()}-{Path(name).name}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def put(self, name: str, path: Path) -> None:
        target = self._root / name
        with self._told(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.replace(target)
            self._sync(target.parent, self._root)

    def create(self, name: str, data: bytes) -> None:
        target = self._root / name
        with self.staged(name) as path, self._told(name):
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(path, target)
            except FileExistsError:
                raise AlreadySaid(f"{name} is in {self.where} already") from None
            self._sync(target.parent, self._root)

    def delete(self, name: str) -> None:
        with self._told(name):
            (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        with (self._root / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RemitError(f"another `remit archive` writes to {self.where}") from None
            # What a killed one has left behind: nobody else writes here now.
            shutil.rmtree(self._root / STAGING, ignore_errors=True)
            yield

    def _sync(self, *folders: Path) -> None:
        """The names, too, are to outlive a power failure: the stream's messages are let go after."""
        for folder in folders:
            fd = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"there is no {name} in {self.where}") from error
        except OSError as error:
            raise RemitError(f"{name} in {self.where}: {error.strerror or error}") from error


class Bucket:
    """A bucket, or a prefix in it. Keys, region and endpoint come from the usual `AWS_…` variables."""

    def __init__(self, url: str) -> None:
        from obstore.store import S3Store  # a twentieth of a second: not for who needs no archive

        self.where = url.rstrip("/")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
        plain = bool(endpoint and endpoint.startswith("http://"))
        with self._told("the bucket"):
            self._store = S3Store.from_url(
                self.where,
                client_options={"allow_http": plain, "connect_timeout": timedelta(seconds=CONNECT_S)},
                retry_config={"max_retries": TRIES, "retry_timeout": timedelta(seconds=TRIES_S)},
                **options,
            )

    def names(self) -> list[str]:
        import obstore

        with self._told("the list of files"):
            return sorted(str(one["path"]) for page in obstore.list(self._store) for one in page)

    def read(self, name: str) -> bytes:
        import obstore

        with self._told(name):
            return bytes(obstore.get(self._store, name).bytes())

    @contextmanager
    def fetched(self, name: str) -> Iterator[Path]:
        import obstore

        with tempfile.NamedTemporaryFile(prefix="remit-archive-") as file:
            with self._told(name):
                for chunk in obstore.get(self._store, name).stream(min_chunk_size=PART_BYTES):
                    file.write(chunk)
                file.flush()
            yield Path(file.name)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="remit-archive-") as folder:
            yield Path(folder) / Path(name).name

    def put(self, name: str, path: Path) -> None:
        import obstore

        with self._told(name):
            obstore.put(self._store, name, path, chunk_size=PART_BYTES)

    def create(self, name: str, data: bytes) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._told(name):
            try:
                obstore.put(self._store, name, data, mode="create")
            except AlreadyExistsError:
                raise AlreadySaid(f"{name} is in {self.where} already") from None

    def delete(self, name: str) -> None:
        import obstore

        with self._told(name):
            obstore.delete(self._store, name)

    def held(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # a lock in a bucket outlives who is killed; `create` decides

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise NotFound(f"there is no {name} in {self.where}") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            why = "the store refuses these credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION)"
            raise RemitError(f"{name} in {self.where}: {why}") from error
        except (BaseError, OSError) as error:
            if "NoSuchBucket" in str(error):
                raise NotFound(f"there is no bucket for {self.where}: make it first") from error
            raise Unavailable(f"{name} in {self.where}: {str(error).splitlines()[0][:300]}") from error
