"""What a source has of the files that are wanted: addresses, sizes, and the digests that it announces."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fmri2img.datasets.fetch_link import Link, file_system, patiently
from fmri2img.datasets.fetch_sources import Wanted
from fmri2img.errors import InputError
from fmri2img.files import digest_json


@dataclass(frozen=True)
class Remote:
    """One file of a source.

    Attributes:
        part: of the source that it belongs to.
        url: where it is.
        file: where it goes, relative to the folder fetched into.
        bytes: its size.
        announced: hexadecimal digests by algorithm, as far as the source announces any.
        members: of a zip file, those to unpack beside it.
    """

    part: str
    url: str
    file: str
    bytes: int
    announced: tuple[tuple[str, str], ...] = ()
    members: tuple[str, ...] = ()

    def partial(self, out: Path) -> Path:
        """Where it is put together; another version of the file has another name."""
        path, version = out / self.file, digest_json([self.bytes, self.announced])[:8]
        return path.with_name(f".{path.name}.{version}.part")


def list_files(wanted: Sequence[Wanted], link: Link, sessions: int | None = None) -> list[Remote]:
    """What a source has of the files wanted.

    Args:
        sessions: of files that are of one session, those of sessions 1 to this one; None for all.

    Raises:
        InputError: a pattern has no file, or the address cannot be listed or read.
        StoppedError: the link is dead.
    """
    listings: dict[str, dict[str, dict[str, Any]]] = {}
    found: dict[str, Remote] = {}
    for want in wanted:
        matching = 0
        for path, info in sorted(_listing(want, link, listings).items()):
            if not fnmatch.fnmatchcase(path, want.pattern):
                continue
            matching += 1
            session = re.search(r"session(\d\d)", path)
            if sessions is None or session is None or int(session[1]) <= sessions:
                remote = _remote(want, path, info)
                found[remote.file] = remote
        if not matching:
            raise InputError(
                f"{want.address} has no file {want.pattern}: leave out part {want.part} or that subject, or give "
                "the address of another copy with --mirror."
            )
    return list(found.values())


def _listing(
    want: Wanted, link: Link, listings: dict[str, dict[str, dict[str, Any]]]
) -> Mapping[str, dict[str, Any]]:
    """Files by path under the address, of the folder that holds all that the pattern can mean."""
    fixed = re.split(r"[*?\[]", want.pattern, maxsplit=1)[0]
    alone = fixed == want.pattern
    folder = fixed if alone else fixed.rpartition("/")[0]
    url = f"{want.address}/{folder}".rstrip("/")
    if url not in listings:
        if not alone and url.startswith("http"):
            raise InputError(f"{url} cannot be listed: give an s3:// or hf:// address with --mirror.")
        listings[url] = patiently(url, link, lambda: _ask(url, folder, alone, link))
    return listings[url]


def _ask(url: str, folder: str, alone: bool, link: Link) -> dict[str, dict[str, Any]]:
    system, path = file_system(url, link)
    if alone:
        return {folder: system.info(path)}
    try:
        listed: dict[str, dict[str, Any]] = system.find(path, detail=True)
    except FileNotFoundError as error:
        if error.__cause__ is not None:
            raise  # perhaps a link that failed
        return {}
    return {
        f"{folder}/{name.removeprefix(path).lstrip('/')}".lstrip("/"): info for name, info in listed.items()
    }


def _remote(want: Wanted, path: str, info: Mapping[str, Any]) -> Remote:
    url = f"{want.address}/{path}"
    file = path if want.folder is None else f"{want.folder}/{PurePosixPath(path).name}".lstrip("/")
    if ".." in PurePosixPath(file).parts or PurePosixPath(file).is_absolute() or "\\" in file:
        raise InputError(
            f"{url} would leave the folder it is fetched into: this is no address to fetch from."
        )
    if info.get("type") != "file" or not isinstance(info.get("size"), int):
        raise InputError(
            f"{url} is no file whose size is told, and only such files are fetched: check the address."
        )
    return Remote(want.part, url, file, info["size"], _announced(url, info), want.members)


def _announced(url: str, info: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """S3's ETag (the MD5 of what was uploaded in one piece), or the hub's sha256 of a large file."""
    tag = str(info.get("ETag", "")).strip('"')
    if url.startswith("s3://") and re.fullmatch(r"[0-9a-f]{32}(-\d+)?", tag):
        return (("s3-etag" if "-" in tag else "md5", tag),)
    lfs = info.get("lfs")
    sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else getattr(lfs, "sha256", None)
    return (("sha256", sha256),) if sha256 else ()


def digests_expected(file: Remote, link: Link) -> dict[str, str]:
    """The digests that a file's bytes must have, by algorithm as `land` takes them.

    S3 says how long the parts of an object are when it is asked for the first. What it says of objects that it encrypts
    with a key of its own is no digest of their bytes, and left out.
    """
    expected = dict(file.announced)
    tag = expected.pop("s3-etag", None)
    if tag is None:
        return expected

    def ask() -> Mapping[str, Any]:
        system, path = file_system(file.url, link)
        bucket, key, _ = system.split_path(path)
        found: Mapping[str, Any] = system.call_s3("head_object", Bucket=bucket, Key=key, PartNumber=1)
        return found

    try:
        found = patiently(file.url, link, ask)
    except InputError:
        return expected  # a store that does not know parts
    part, encrypted = found["ContentLength"], str(found.get("ServerSideEncryption", "")).startswith("aws:kms")
    if part and not encrypted and -(-file.bytes // part) == int(tag.partition("-")[2]):
        expected[f"s3-etag:{part}"] = tag
    return expected
