"""`fmri2img data fetch`."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from fmri2img.console import output, size_text, stage
from fmri2img.errors import InputError

if TYPE_CHECKING:
    from fmri2img.datasets.fetch_listing import Remote

MB = 10**6


@dataclass(frozen=True)
class DataFetch:
    """Download a published source: what is there already is kept, and what stopped half-way goes on."""

    source: Positional[Literal["nsd", "mindeye2", "mindeye1", "neuropictor"]]
    """the NSD release, or a set that others prepared from it"""
    out: Positional[Path]
    """the folder to fetch into"""
    subjects: tuple[str, ...] = ()
    """subj01 to subj08; all that the source has otherwise"""
    parts: tuple[str, ...] = ()
    """such as betas, rois or stimuli; the usual ones otherwise (--dry-run shows them all)"""
    betas: Literal["b1", "b2", "b3"] = "b3"
    """of NSD: b1 is betas_assumehrf, b2 betas_fithrf, b3 betas_fithrf_GLMdenoise_RR"""
    space: Literal["func1pt8mm", "func1mm"] = "func1pt8mm"
    """of NSD: resolution of the volumes"""
    sessions: int | None = None
    """of NSD: files of the first sessions up to this one; all otherwise"""
    dry_run: bool = False
    """list the files with their sizes and stop"""
    reread: bool = False
    """compare the bytes of files that are there with their digests, not only their size and date"""
    streams: int = 4
    """files fetched at a time"""
    mirror: str | None = None
    """address of a copy of the source, s3:// or hf://, to fetch from instead"""
    accept_nsd_terms: bool = False
    """accept the terms of the Natural Scenes Dataset; FMRI2IMG_ACCEPT_NSD_TERMS=1 does too"""

    def run(self) -> None:
        from fmri2img.datasets.fetch import Landed, bytes_to_fetch, fetch, free_bytes
        from fmri2img.datasets.fetch_link import Link
        from fmri2img.datasets.fetch_listing import list_files
        from fmri2img.datasets.fetch_sources import SOURCES, wanted

        if self.streams < 1 or (self.sessions is not None and self.sessions < 1):
            raise InputError(f"--streams {self.streams}, --sessions {self.sessions}: use numbers from 1.")
        source = SOURCES[self.source]
        chosen = wanted(
            source,
            subjects=_split(self.subjects),
            parts=_split(self.parts),
            betas=self.betas,
            space=self.space,
            mirror=self.mirror,
        )
        if not self.dry_run:
            _accept_terms(self.accept_nsd_terms)
        link = Link() if self.mirror else Link(options=source.options)
        output().print(f"Listing {source.about} ...")
        files = list_files(chosen, link, self.sessions)
        landed = Landed(self.out, link)
        todo = [file for file in files if not landed.seems(file)]
        if self.dry_run:
            _show(files)
            unused = [
                f"{name} ({part.about})" for name, part in source.parts.items() if name not in _parts(files)
            ]
            output().print(f"Parts left out: {', '.join(unused) or 'none'}", markup=False)
        output().print(
            f"{len(files)} files, {size_text(sum(file.bytes for file in files))}; to fetch: {len(todo)} files, "
            f"{size_text(bytes_to_fetch(todo, self.out))}; free in {self.out}: {size_text(free_bytes(self.out))}",
            markup=False,
        )
        if self.dry_run:
            return
        with stage(f"Fetching {source.name}", "MB") as tell:
            brought = fetch(
                files,
                self.out,
                link=link,
                streams=self.streams,
                reread=self.reread,
                tell=lambda done, total: tell(done // MB, total // MB),
            )
        output().print(f"{len(brought)} files fetched, {len(files)} verified in {self.out}", markup=False)


def _accept_terms(flag: bool) -> None:
    """Show the terms and have them accepted, once."""
    from fmri2img.datasets import fetch_terms

    if fetch_terms.accepted():
        return
    agreed = os.environ.get(fetch_terms.ACCEPT, "").lower() in ("1", "true", "yes")
    if not (flag or agreed or sys.stdin.isatty()):
        raise fetch_terms.refused()
    output().print(fetch_terms.SUMMARY, markup=False)
    how = "flag" if flag else "environment" if agreed else "terminal"
    if how == "terminal" and input("Do you accept these terms? [y/N] ").strip().lower() not in ("y", "yes"):
        raise fetch_terms.refused()
    output().print(f"Accepted; recorded in {fetch_terms.accept(how)}", markup=False)


def _show(files: "list[Remote]") -> None:
    for name in _parts(files):
        part = [file for file in files if file.part == name]
        output().print(f"{name}: {len(part)} files, {size_text(sum(file.bytes for file in part))}")
        for file in part:
            output().print(f"  {size_text(file.bytes):>9}  {file.file}", markup=False)


def _parts(files: "list[Remote]") -> list[str]:
    return list(dict.fromkeys(file.part for file in files))


def _split(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for word in words for name in word.split(",") if name)
