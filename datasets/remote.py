"""Data sets at an address (`s3://`, `hf://`, `https://`): files are fetched into this machine's cache when first read.

The manifest is read once and holds for the process. It names the sha256 of every other file, so what lands is checked
against it, and a file is in the cache or it is not, whoever asks.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path, PosixPath
from typing import Any

from fmri2img.datasets.cache import BYTES, FileCache, open_cache
from fmri2img.datasets.dataset import Dataset
from fmri2img.datasets.fetch_ahead import Ahead
from fmri2img.datasets.fetch_bytes import land, read_whole
from fmri2img.datasets.fetch_link import PROTOCOLS, AbsentError, Link, file_system, patiently
from fmri2img.datasets.files import FilePool, Handle, damage
from fmri2img.datasets.manifest import MANIFEST, DatasetManifest, FileEntry, read_manifest
from fmri2img.errors import DamageError, InputError
from fmri2img.files import sha256_file, write_atomic

_pinned: dict[str, DatasetManifest] = {}
_locks = {"pinning": threading.Lock(), "starting": threading.Lock()}
os.register_at_fork(after_in_child=lambda: _locks.update({name: threading.Lock() for name in _locks}))


class Address(PosixPath):
    """An address that can be taken for a path: `/` goes on, and it prints with its two slashes."""

    def __str__(self) -> str:
        return re.sub(r"^([a-z0-9]+):/(?!/)", r"\1://", super().__str__())


def address_of(path: str | Path) -> str | None:
    """The address that a path is meant to be (a `Path` keeps one slash of two), or None for a path."""
    found = re.fullmatch(rf"({'|'.join(PROTOCOLS)}):/{{1,2}}([^/].*)", str(path))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


def absolute(path: str | Path) -> Path:
    """A data set's path that means the same in another folder and process: an address stays one."""
    address = address_of(path)
    return Path(path).resolve() if address is None else Address(address)


def refuse_address(path: str | Path, what: str) -> None:
    """Raise InputError for an address where a folder is needed; `what` cannot be done at a distance."""
    address = address_of(path)
    if address is not None:
        raise InputError(
            f"{address} is an address, and {what} needs its folder: do it where that is, or copy it here"
        )


class RemoteFiles:
    """The files of a data set at `url`, through a cache. Picklable.

    Args:
        url: of the data set folder.
        cache: of this machine.
        link: how to reach the address.
    """

    def __init__(self, url: str, cache: FileCache, link: Link | None = None) -> None:
        self.url, self.cache, self.link = url.rstrip("/"), cache, link or Link()
        self._ahead: Ahead | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "cache": self.cache, "link": self.link}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RemoteFiles.__init__(self, **state)

    def locate(self, entry: FileEntry) -> Path:
        """Where a file of the manifest lies on this machine, fetched and checked if it was not here.

        Raises:
            DamageError: the stored file is missing or not the one of the manifest.
            InputError: there is no right to read it, or no room for it.
            StoppedError: the link is dead.
        """
        url = f"{self.url}/{entry.file}"

        def download(partial: Path) -> None:
            expected = {"sha256": entry.sha256}
            land(url, partial, size=entry.bytes, expected=expected, link=self.link)

        try:
            return self.cache.get(entry.sha256, entry.bytes, download)
        except AbsentError:
            raise damage(Address(self.url), entry.file, "the file is missing") from None

    def prefetch(self, entries: Iterable[FileEntry]) -> None:
        """Fetch files in the background, in this order; what was asked for before and has not begun is dropped.

        Where the cache cannot hold them all, the first of them fill half of it. A failure ends the work; whoever reads
        the file meets it.
        """
        with _locks["starting"]:
            if self._ahead is None or self._ahead.process != os.getpid():  # a fork takes no threads along
                self._ahead = Ahead(self.locate)
        wanted = list(entries)
        sizes = list(accumulate(entry.bytes for entry in wanted))
        if sizes and sizes[-1] > self.cache.limit:
            wanted = [
                entry for entry, size in zip(wanted, sizes, strict=True) if size <= self.cache.limit // 2
            ]
        self._ahead.want(wanted)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is fetched in the background; whether that is so."""
        return self._ahead is None or self._ahead.idle.wait(timeout)


class RemotePool(FilePool):
    """Reads from the cache; a copy that was damaged since it landed is thrown away.

    Files that made room in the cache are closed when another is opened, so that their bytes go from the disk.
    """

    def __init__(self, remote: RemoteFiles) -> None:
        super().__init__(Address(remote.url), remote.locate)
        self.source = remote

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RemotePool.__init__(self, state["source"])

    def _opened(self, entry: FileEntry) -> Handle:
        handle = super()._opened(entry)
        with self._lock:
            for file in [
                name for name, open_ in self._open.items() if not os.fstat(open_.descriptor).st_nlink
            ]:
                del self._open[file]
        return handle

    def wrong(self, entry: FileEntry, offset: int, key: str) -> DamageError:
        path = self.source.cache.find(entry.sha256, entry.bytes)
        if path is None or sha256_file(path) == entry.sha256:
            return super().wrong(entry, offset, key)
        self.source.cache.remove(entry.sha256)
        return DamageError(
            f"{path}, this machine's copy of {self.root / entry.file}, was damaged since it landed and has been "
            "removed: the same command fetches it anew."
        )


class RemoteDataset(Dataset):
    """A data set whose files are at an address; `prefetch` says which are needed next."""

    def __init__(self, manifest: DatasetManifest, remote: RemoteFiles) -> None:
        # As a data set that was sent here, since that is the way to bring one's own pool of files.
        super().__setstate__({"path": Address(remote.url), "manifest": manifest, "files": RemotePool(remote)})
        self.remote = remote

    def __getstate__(self) -> dict[str, Any]:
        return {"manifest": self.manifest, "remote": self.remote}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RemoteDataset.__init__(self, state["manifest"], state["remote"])

    def prefetch(self, shards: Iterable[int], columns: Sequence[str] = ("responses",)) -> None:
        """Fetch these columns of shards (by their places in the manifest) in the background, in this order."""
        chosen = [self.manifest.shards[number].columns[name] for number in shards for name in columns]
        self.remote.prefetch(entry for column in chosen for entry in (column.index, column))


def open_remote(
    url: str,
    cache: Path | str | None = None,
    limit: int | None = None,
    *,
    link: Link | None = None,
) -> RemoteDataset:
    """Open the data set at an address.

    Args:
        url: of its folder; `https://` is any web server that serves parts of files.
        cache: folder for its files; FMRI2IMG_CACHE or the user's cache folder otherwise.
        limit: bytes that the cache may hold; FMRI2IMG_CACHE_BYTES or most of the disk otherwise.

    Raises:
        InputError: there is no data set, it may not be read, or the cache cannot hold its largest file.
        DamageError: the manifest is damaged, or (where files can be listed: not over https) a shard is not in it.
        StoppedError: the link is dead.
    """
    address, link = address_of(url), link or Link()
    if address is None:
        raise InputError(f"{url} is no address of a data set: use s3://, hf:// or https://.")
    if re.match(r"https?://[^/]*@", address):
        raise InputError(
            "The address holds a user name or password, which would reach logs and checkpoints: leave it out, and put "
            "it into fsspec's configuration."
        )
    made = open_cache(cache, limit)
    with _locks["pinning"]:
        if address not in _pinned:
            _pinned[address] = _fetch_manifest(address, made.folder, link)
        manifest = _pinned[address]
    largest = max((column.bytes for shard in manifest.shards for column in shard.columns.values()), default=0)
    if largest > made.limit:
        raise InputError(
            f"The cache {made.folder} may hold {made.limit} bytes, too few for the largest file of {address}, "
            f"{largest} bytes: raise {BYTES}."
        )
    return RemoteDataset(manifest, RemoteFiles(address, made, link))


def _fetch_manifest(url: str, cache: Path, link: Link) -> DatasetManifest:
    try:
        data = read_whole(f"{url}/{MANIFEST}", link)
    except InputError as error:
        raise InputError(f"{url} is no data set that can be read: {error}") from None
    folder = cache / "manifests" / hashlib.sha256(data).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / MANIFEST, data)
    try:
        manifest = read_manifest(folder)
    except (DamageError, InputError) as error:
        raise type(error)(str(error).replace(str(folder), url)) from None
    known = {shard.name for shard in manifest.shards}
    for file in _listed(url, link):
        if file.count("/") < 2 and file.endswith(".tar") and file.partition(".")[0] not in known:
            rule = "this shard is not in the manifest, so it is not part of the data set: move it away"
            raise damage(Address(url), file, rule)
    return manifest


def _listed(url: str, link: Link) -> list[str]:
    """Files of the folder, as paths in it; none where files cannot be listed."""
    if url.startswith("http"):
        return []
    system, path = file_system(url, link)
    try:
        found: list[str] = patiently(url, link, lambda: system.find(path))
    except InputError:
        return []  # files may be readable where they may not be listed
    return [name.removeprefix(path).lstrip("/") for name in found]
