"""The images in a zip or tar archive, listed without unpacking it, and members that are dangerous to unpack."""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from imbalance_vlm.data.dataset import has_image_name
from imbalance_vlm.data.lists import leads_out
from imbalance_vlm.data.reader import SPLIT_WORDS
from imbalance_vlm.data.state_table import file_state
from imbalance_vlm.data.walk import is_hidden
from imbalance_vlm.errors import InputError
from imbalance_vlm.progress import bar
from imbalance_vlm.verification.findings import Finding
from imbalance_vlm.verification.inspection import Inspection, Location, error_text, inspect_bytes

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
RATIO = 100
"""A member that grows by a larger factor is a bomb: images are compressed already, and text grows about tenfold."""
SMALL = 16 << 20
"""Bytes up to which nothing is a bomb, whatever its factor."""


@dataclass(frozen=True)
class Member:
    """An image in an archive.

    Args:
        name: its path in the archive.
        state: changes with its content, as far as the archive's index tells.
        location: where to read it; None where it was inspected while the archive was streamed.
        inspection: the result of that inspection, or of its entry in the index.
    """

    name: str
    state: str
    location: Location | None
    inspection: Inspection | None = None


@dataclass
class Archive:
    """The images of an archive, the findings made while listing it, and the number of other files."""

    members: list[Member] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    other_files: int = 0
    names: set[str] = field(default_factory=set)

    def report(self, kind: str, name: str, detail: str) -> None:
        self.findings.append(Finding(kind, path=name, detail=detail))

    def accept(self, name: str) -> bool:
        """Whether a member of this name may be unpacked; problems are reported."""
        if leads_out(name):
            self.report("path_traversal", name, "would be written outside of the folder it is unpacked in")
            return False
        plain = str(PurePosixPath(name))
        if plain in self.names:
            self.report("repeated_name", name, "the later one overwrites the earlier when unpacked")
        self.names.add(plain)
        return True


DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError, OverflowError)
"""What reading a damaged tar file raises; the last two come from sizes in its headers."""


def is_archive(file: Path) -> bool:
    """Whether a file is a zip or tar archive by its name."""
    return file.name.lower().endswith(ENDINGS)


def is_image(name: str) -> bool:
    """Whether a member of an archive is an image by its name."""
    *folders, file = PurePosixPath(name).parts
    return has_image_name(file) and not any(map(is_hidden, folders))


def read_archive(file: Path) -> Archive:
    """The listing of an archive.

    Raises:
        InputError: it is neither a zip nor a tar archive, or its index cannot be read.
    """
    try:
        return _read_zip(file) if file.name.lower().endswith(".zip") else _read_tar(file)
    except (*DAMAGED, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(
            f"{file} cannot be read as an archive ({error_text(error)}); copy or download it again"
        ) from error


def _read_zip(file: Path) -> Archive:
    archive = Archive()
    status = file.stat()
    with zipfile.ZipFile(file) as opened:
        entries = opened.infolist()
    # Members that share compressed bytes make gigabytes out of kilobytes, whatever the factor of each.
    packed = sum(entry.compress_size for entry in entries)
    if packed > status.st_size:
        archive.report("bomb", file.name, f"its members claim {packed:,} packed bytes, the file has {status.st_size:,}")
    for number, entry in enumerate(entries):
        name = entry.orig_filename
        if entry.is_dir():
            archive.accept(name.rstrip("/") + "/.")
            continue
        if not archive.accept(name):
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            archive.report("link", name, "a symbolic link")
        elif entry.file_size > SMALL and entry.file_size > RATIO * max(entry.compress_size, 1):
            archive.report("bomb", name, f"{entry.compress_size:,} bytes that unpack to {entry.file_size:,}")
        elif not is_image(name):
            archive.other_files += 1
        else:
            result = Inspection("unreadable", "encrypted") if entry.flag_bits & 1 else None
            if entry.file_size == 0:
                result = Inspection("zero_byte")
            location = None if result else Location(str(file), number, entry.file_size, name)
            archive.members.append(Member(name, f"{file_state(status)} {entry.CRC}", location, result))
    return archive


def _read_tar(file: Path) -> Archive:
    """Images of a plain tar file are read from their positions later; a compressed one is streamed once."""
    archive = Archive()
    packed_size = file.stat().st_size
    streamed = not file.name.lower().endswith(".tar")
    total = 0
    try:
        with (
            tarfile.open(file, "r|*" if streamed else "r:") as opened,
            bar(0, f"list {file.name}", "member") as progress,
        ):
            for entry in opened:
                progress.update()
                total += entry.size
                if streamed and total > SMALL and total > RATIO * packed_size:
                    detail = f"{packed_size:,} bytes that unpack to {total:,} and more; the rest was not read"
                    archive.report("bomb", entry.name, detail)
                    return archive
                _add_tar_entry(archive, file, opened if streamed else None, entry)
    except DAMAGED as error:
        if not archive.names:
            raise
        detail = f"{error_text(error)}; {len(archive.names):,} members were read, what follows is lost"
        archive.report("damaged_archive", file.name, detail)
    return archive


def _add_tar_entry(archive: Archive, file: Path, stream: tarfile.TarFile | None, entry: tarfile.TarInfo) -> None:
    """Add one entry of a tar file; `stream` is the open file where an image must be read now."""
    if not archive.accept(entry.name.rstrip("/") + ("/." if entry.isdir() else "")) or entry.isdir():
        return
    if entry.issym() or entry.islnk():
        kind = "symbolic" if entry.issym() else "hard"
        archive.report("link", entry.name, f"a {kind} link to {entry.linkname}")
    elif not entry.isfile():
        archive.report("special_file", entry.name, "a device or a pipe")
    elif not is_image(entry.name):
        archive.other_files += 1
    elif stream is not None:
        content = stream.extractfile(entry)
        archive.members.append(Member(entry.name, "", None, inspect_bytes(content.read() if content else b"")))
    else:
        empty = Inspection("zero_byte") if entry.size == 0 else None
        location = None if empty else Location(str(file), entry.offset_data, entry.size)
        archive.members.append(Member(entry.name, f"{file_state(file.stat())} {entry.offset_data}", location, empty))


def structure(names: list[str]) -> list[tuple[str, str]]:
    """(split or "", class folder or "") of each path, by the rules of `FolderReader`; a folder around all is skipped.

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
