"""What a zip or tar archive holds, read without unpacking it, and what unpacking it would do."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imbalance_vlm.data.folder import SUFFIXES
from imbalance_vlm.data.lists import leads_out
from imbalance_vlm.data.table import SPLIT_WORDS
from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import bar
from imbalance_vlm.verification.inspecting import Inspected, Place, inspect_bytes

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
RATIO = 100
"""A member that grows by more is a bomb: images are compressed already, and text grows by ten."""
SMALL = 16 << 20
"""Bytes up to which nothing is a bomb, however much it grows."""


@dataclass(frozen=True)
class Member:
    """An image in an archive.

    Args:
        name: its path in the archive.
        size: its bytes.
        stamp: changes with its content, as far as the archive's index says.
        place: where to read it; None where it was inspected while the archive streamed by.
        inspected: what was found then, or by its entry alone.
    """

    name: str
    size: int
    stamp: int
    place: Place | None
    inspected: Inspected | None = None


@dataclass
class Archive:
    """The images of an archive, findings as (kind, name, detail), and how many other files it has."""

    members: list[Member] = field(default_factory=list)
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    others: int = 0
    names: set[str] = field(default_factory=set)

    def accept(self, name: str) -> bool:
        """Whether this name may be unpacked; what is wrong with it is noted."""
        if leads_out(name):
            self.findings.append(("path_traversal", name, "would be written outside of the folder it is unpacked in"))
            return False
        plain = str(PurePosixPath(name))
        if plain in self.names:
            self.findings.append(("repeated_name", name, "the later one overwrites the earlier when unpacked"))
        self.names.add(plain)
        return True


def is_archive(file: Path) -> bool:
    return file.name.lower().endswith(ENDINGS)


def is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and "__MACOSX" not in path.parts


def read_archive(file: Path) -> Archive:
    """The listing of an archive.

    Raises:
        InputError: it is neither a zip nor a tar archive, or its index cannot be read.
    """
    try:
        return _read_zip(file) if file.name.lower().endswith(".zip") else _read_tar(file)
    except (zipfile.BadZipFile, tarfile.ReadError, OSError, NotImplementedError) as error:
        words = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as an archive ({words}); copy or download it anew") from error


def _read_zip(file: Path) -> Archive:
    found = Archive()
    stamp = file.stat().st_mtime_ns
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    # Members that share compressed bytes make gigabytes out of kilobytes, whatever the ratio of each.
    packed = sum(entry.compress_size for entry in entries)
    if packed > file.stat().st_size:
        found.findings.append(
            ("bomb", file.name, f"its members claim {packed:,} packed bytes, the file has {file.stat().st_size:,}")
        )
    for number, entry in enumerate(entries):
        name = entry.orig_filename
        if entry.is_dir():
            found.accept(name.rstrip("/") + "/.")
            continue
        if not found.accept(name):
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            found.findings.append(("link", name, "a symbolic link"))
            continue
        if entry.file_size > SMALL and entry.file_size > RATIO * max(entry.compress_size, 1):
            said = f"{entry.compress_size:,} bytes that unpack to {entry.file_size:,}"
            found.findings.append(("bomb", name, said))
            continue
        if not is_image(name):
            found.others += 1
            continue
        told = Inspected("unreadable", "encrypted") if entry.flag_bits & 1 else None
        if entry.file_size == 0:
            told = Inspected("zero_byte")
        place = Place(str(file), number, entry.file_size, name)
        found.members.append(Member(name, entry.file_size, stamp ^ entry.CRC, None if told else place, told))
    return found


def _read_tar(file: Path) -> Archive:
    """Images of a plain tar file are read from their places later; a compressed one streams by once."""
    found = Archive()
    status = file.stat()
    streams = not file.name.lower().endswith(".tar")
    total = 0
    try:
        with (
            tarfile.open(file, "r|*" if streams else "r:") as archive,
            bar(0, f"list {file.name}", "member") as progress,
        ):
            for member in archive:
                progress.update()
                total += member.size
                if streams and total > SMALL and total > RATIO * status.st_size:
                    said = f"{status.st_size:,} bytes that unpack to {total:,} and more; the rest was not read"
                    found.findings.append(("bomb", member.name, said))
                    return found
                if not found.accept(member.name.rstrip("/") + ("/." if member.isdir() else "")) or member.isdir():
                    continue
                if member.issym() or member.islnk():
                    kind = "symbolic" if member.issym() else "hard"
                    found.findings.append(("link", member.name, f"a {kind} link to {member.linkname}"))
                elif not member.isfile():
                    found.findings.append(("special_file", member.name, "a device or a pipe"))
                elif not is_image(member.name):
                    found.others += 1
                elif streams:
                    stream = archive.extractfile(member)
                    told = inspect_bytes(stream.read() if stream else b"")
                    found.members.append(Member(member.name, member.size, 0, None, told))
                else:
                    empty = Inspected("zero_byte") if member.size == 0 else None
                    place = Place(str(file), member.offset_data, member.size)
                    one = Member(member.name, member.size, status.st_mtime_ns, None if empty else place, empty)
                    found.members.append(one)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if not found.names:
            raise
        words = " ".join(str(error).split()) or type(error).__name__
        last = f"{len(found.names):,} members were read"
        found.findings.append(("damaged_archive", file.name, f"{words}; {last}, what follows is lost"))
    return found


def structure(names: list[str]) -> list[tuple[str, str]]:
    """(split or "", class folder or "") of each path, by the rules of the image folder; a folder around all is passed.

    >>> structure(["cats/train/lynx/1.jpg", "cats/test/lynx/2.jpg"])
    [('train', 'lynx'), ('test', 'lynx')]
    >>> structure(["lynx/1.jpg", "puma/a/2.jpg", "3.jpg"])
    [('', 'lynx'), ('', 'puma'), ('', '')]
    """
    parts = [PurePosixPath(name).parts for name in names]
    while len({path[0] for path in parts}) == 1 and 2 * sum(len(path) > 2 for path in parts) > len(parts):
        parts = [path[1:] for path in parts]
    splits = {SPLIT_WORDS.get(path[0].lower(), "") for path in parts if len(path) > 2}
    if len(splits) > 1 and "" not in splits:
        return [(SPLIT_WORDS.get(path[0].lower(), "train"), path[1] if len(path) > 2 else "") for path in parts]
    return [("", path[0] if len(path) > 1 else "") for path in parts]
