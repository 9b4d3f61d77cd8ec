"""Archives are listed without being unpacked, and the dangers of unpacking them are reported."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from imbalance_vlm.errors import InputError
from imbalance_vlm.verification.archives import Archive, read_archive, structure
from imbalance_vlm.verification.collection import collect
from tests.data.miniatures import encoded, write_tar

IMAGE = encoded(".jpg", 1)


def kinds(archive: Archive) -> dict[str, str]:
    return {finding.path: finding.kind for finding in archive.findings}


def names(archive: Archive) -> list[str]:
    return [member.name for member in archive.members]


def test_all_dangers_of_a_zip_file_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (
            "cat/1.jpg",
            "../up.jpg",
            "/etc/x.jpg",
            "C:/x.jpg",
            "cat\\..\\..\\x.jpg",
            "notes.txt",
            "__MACOSX/cat/._1.jpg",
        ):
            archive.writestr(name, IMAGE)
        archive.writestr("cat/bomb.jpg", bytes(20 << 20))
        archive.writestr("cat/none.jpg", b"")
        link = zipfile.ZipInfo("cat/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    listed = read_archive(file)
    assert kinds(listed) == {
        "../up.jpg": "path_traversal",
        "/etc/x.jpg": "path_traversal",
        "C:/x.jpg": "path_traversal",
        "cat\\..\\..\\x.jpg": "path_traversal",
        "cat/bomb.jpg": "bomb",
        "cat/link.jpg": "link",
    }
    assert names(listed) == ["cat/1.jpg", "cat/none.jpg"]
    assert listed.other_files == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_repeated_name_is_reported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("cat/1.jpg", IMAGE)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("cat/1.jpg", IMAGE + b"more")
    listed = read_archive(tmp_path / "a.zip")
    assert kinds(listed) == {"cat/1.jpg": "repeated_name"}
    first, second = (member.location for member in listed.members)
    assert first is not None
    assert second is not None
    assert (first.read(), second.read()) == (IMAGE, IMAGE + b"more")


def test_members_that_share_their_bytes_are_a_bomb(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cat/1.jpg", IMAGE * 100)
        for number in range(20):
            twin = zipfile.ZipInfo(f"cat/again{number}.jpg")
            first = archive.infolist()[0]
            twin.file_size, twin.compress_size, twin.CRC = first.file_size, first.compress_size, first.CRC
            twin.header_offset = first.header_offset
            archive.filelist.append(twin)
        archive.start_dir = archive.fp.tell()  # type: ignore[union-attr]
    assert kinds(read_archive(file)) == {"a.zip": "bomb"}


@pytest.mark.parametrize(("mode", "ending"), [("w", ".tar"), ("w:gz", ".tar.gz"), ("w:xz", ".txz")])
def test_all_dangers_of_a_tar_file_are_reported(tmp_path: Path, mode: str, ending: str) -> None:
    file = tmp_path / f"a{ending}"
    with tarfile.open(file, mode) as archive:  # type: ignore[call-overload]
        for name, kind, content in (
            ("cat/1.jpg", tarfile.REGTYPE, IMAGE),
            ("../up.jpg", tarfile.REGTYPE, IMAGE),
            ("/x.jpg", tarfile.REGTYPE, IMAGE),
            ("cat/soft.jpg", tarfile.SYMTYPE, b""),
            ("cat/hard.jpg", tarfile.LNKTYPE, b""),
            ("cat/pipe.jpg", tarfile.FIFOTYPE, b""),
            ("notes.txt", tarfile.REGTYPE, b"hello"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "1.jpg"
            archive.addfile(info, io.BytesIO(content))
    listed = read_archive(file)
    assert kinds(listed) == {
        "../up.jpg": "path_traversal",
        "/x.jpg": "path_traversal",
        "cat/soft.jpg": "link",
        "cat/hard.jpg": "link",
        "cat/pipe.jpg": "special_file",
    }
    (member,) = listed.members
    assert member.name == "cat/1.jpg"
    assert (member.location is None) == (ending != ".tar")
    assert member.location is None or member.location.read() == IMAGE
    assert listed.other_files == 1


def test_a_compressed_tar_that_grows_without_end_is_not_read_on(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name, content in (("cat/1.jpg", IMAGE), ("cat/2.jpg", bytes(40 << 20)), ("cat/3.jpg", IMAGE)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    listed = read_archive(tmp_path / "a.tgz")
    assert kinds(listed) == {"cat/2.jpg": "bomb"}
    assert names(listed) == ["cat/1.jpg"]


def test_the_readable_part_of_a_truncated_tar_is_listed(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "a.tar", {f"cat/{number}.jpg": IMAGE for number in range(5)})
    file.write_bytes(file.read_bytes()[:2500])
    listed = read_archive(file)
    assert kinds(listed) == {"a.tar": "damaged_archive"}
    assert names(listed)[:2] == ["cat/0.jpg", "cat/1.jpg"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello, I am no archive" * 99)
    with pytest.raises(InputError, match="cannot be read as an archive"):
        read_archive(tmp_path / name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train/cat/1.jpg", "test/cat/1.jpg"], [("train", "cat"), ("test", "cat")]),
        (["set/train/cat/1.jpg", "set/Validation/dog/1.jpg"], [("train", "cat"), ("val", "dog")]),
        (["cat/1.jpg", "cat/2.jpg"], [("", "cat"), ("", "cat")]),
        (["set/cat/1.jpg", "set/dog/2.jpg", "set/3.jpg"], [("", "cat"), ("", "dog"), ("", "")]),
        (["train/1.jpg", "bus/1.jpg"], [("", "train"), ("", "bus")]),
    ],
)
def test_splits_and_classes_by_the_structure_of_the_paths(given: list[str], expected: list[tuple[str, str]]) -> None:
    assert structure(given) == expected


def test_a_single_shard_is_explained(tmp_path: Path) -> None:
    file = tmp_path / "train-000000.tar"
    with tarfile.open(file, "w") as archive:
        for name, content in (("0001.jpg", IMAGE), ("0001.cls", b"3")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    collection = collect(str(file))
    assert any(f"a WebDataset shard is read with its folder: {tmp_path}" in note for note in collection.notes)


@pytest.mark.parametrize(
    "headers", [{"GNU.sparse.size": "abc"}, {"GNU.sparse.map": "1,a"}, {"size": "9" * 30}], ids=str
)
def test_a_tar_file_with_an_impossible_size_is_refused(headers: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("cat/1.jpg")
        member.size, member.pax_headers = len(IMAGE), headers
        archive.addfile(member, io.BytesIO(IMAGE))
    if "size" in headers:  # its own header can be read, what follows cannot
        assert "damaged_archive" in kinds(read_archive(tmp_path / "a.tar")).values()
        return
    with pytest.raises(InputError, match=r"a\.tar cannot be read as an archive"):
        read_archive(tmp_path / "a.tar")
