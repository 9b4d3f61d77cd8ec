"""WebDataset shards: random access by an index in the cache, and refused shards."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.data import webdataset as reader
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import make_reader
from imbalance_vlm.verification.verify import verify
from tests.data.miniatures import encoded, write_tar
from tests.data.miniatures import webdataset as miniature


def read_shards(**settings: Any) -> Dataset:
    return make_reader({"name": "webdataset", **settings}).read()


def sample(label: Any = 0, key: str = "a", kind: str = "cls") -> dict[str, bytes]:
    return {f"{key}.jpg": encoded(".jpg", 0), f"{key}.{kind}": str(label).encode()}


def samples(*labels: Any, kind: str = "cls") -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for number, label in enumerate(labels):
        members |= sample(label, f"s{number}", kind)
    return members


def test_splits_by_the_names_of_the_shards(tmp_path: Path) -> None:
    section = miniature(tmp_path)
    data = read_shards(root=section["root"], class_names=section["class_names"])
    assert data.class_names == ("red apple", "green leaf", "blue car", "white cup")
    assert data.counts.tolist() == [6, 4, 3, 3]
    assert data.splits["test"].counts(4).tolist() == [2] * 4


def test_images_are_read_in_any_order(tmp_path: Path) -> None:
    section = miniature(tmp_path)
    part = read_shards(root=section["root"]).splits["train"]
    assert len(part) == 16
    for row in (15, 0, 7):
        shard, _, name = part.images.name(row).partition("/")
        with tarfile.open(Path(section["root"]) / shard) as archive:
            content = archive.extractfile(name)
            assert content is not None
            expected = np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB"))
        assert np.array_equal(np.asarray(part.images[row]), expected)
    taken = part.take(np.array([7, 0]))
    assert taken.images.name(0) == part.images.name(7)
    assert np.array_equal(np.asarray(taken.images[1]), np.asarray(part.images[0]))
    assert taken.images.fingerprint != part.images.fingerprint


def test_the_index_is_made_once_and_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = miniature(tmp_path)
    before = sorted(os.listdir(section["root"]))
    opened: list[str] = []
    plain = tarfile.open
    monkeypatch.setattr(reader.tarfile, "open", lambda name, *rest: opened.append(str(name)) or plain(name, *rest))
    first, again = read_shards(root=section["root"]), read_shards(root=section["root"])
    assert len(opened) == 4
    assert first.splits["train"].fingerprint == again.splits["train"].fingerprint
    assert sorted(os.listdir(section["root"])) == before
    index = sorted((tmp_path / "cache" / "webdataset").iterdir())
    assert len(index) == 4
    index[0].write_text("{half")
    read_shards(root=section["root"])
    assert len(opened) == 5
    shard = next(Path(section["root"]).glob("*train*.tar"))
    write_tar(shard, samples(0, 1, 2, 3))
    opened.clear()
    read_shards(root=section["root"])
    assert opened == [str(shard)], "a changed shard is read again"


def test_splits_by_folders_and_splits_drawn(tmp_path: Path) -> None:
    write_tar(tmp_path / "by" / "train" / "0.tar", samples(0, 1))
    write_tar(tmp_path / "by" / "validation" / "0.tar", samples(0))
    write_tar(tmp_path / "by" / "test" / "0.tar", samples(1))
    assert {split: len(part) for split, part in read_shards(root=tmp_path / "by").splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    write_tar(tmp_path / "one" / "0.tar", samples(*[0] * 10, *[1] * 5, 2))
    assert read_shards(root=tmp_path / "one").counts.tolist() == [8, 4, 1]


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("cls", [3, 3, 12, 12], ("3", "12")),
        ("txt", ["red_fox", "red_fox", "owl", "owl"], ("owl", "red fox")),
        ("json", [json.dumps({"label": word}) for word in ("owl", "owl", "fox", "fox")], ("fox", "owl")),
        ("json", [json.dumps({"label": number}) for number in (1, 1, 0, 0)], ("0", "1")),
    ],
)
def test_labels_in_all_three_forms(tmp_path: Path, kind: Any, labels: list[Any], names: tuple[str, ...]) -> None:
    write_tar(tmp_path / "w" / "0.tar", samples(*labels, kind=kind))
    data = read_shards(root=tmp_path / "w", label_file=kind, test_fraction=0.5)
    assert data.class_names == names
    assert data.counts.tolist() == [1, 1]


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "C:/x.jpg", "..\\x.jpg"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "w" / "0.tar", sample() | {name: b"x"})
    with pytest.raises(InputError, match="which leads out of the shard"):
        read_shards(root=tmp_path / "w")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_are_refused(tmp_path: Path, kind: bytes) -> None:
    file = write_tar(tmp_path / "0.tar", {})
    with tarfile.open(file, "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(InputError, match="is a link"):
        read_shards(root=tmp_path)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.jpg": b"x"}, "every image must have a label in a .cls file of the same name, 'a' has none; set"),
        ({"a.jpg": b"x", "b.jpg": b"x"}, "nor have 1 others"),
        ({"a.cls": b"0"}, "must hold images"),
        ({}, "must hold images"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"0"}, "must have one image, 'a' has more"),
        ({"a.jpg": b"x", "a.cls": b"-1"}, "0.tar: the .cls file of a.jpg: a label must be .* >= 0, got '-1'"),
        ({"a.jpg": b"x", "a.cls": b""}, "the .cls file of a.jpg: 'label' is empty"),
        ({"a.jpg": b"x", "a.cls": b"fox\ncat"}, "must be one line of text without tabs"),
        ({"a.jpg": b"x", "a.cls": b"\xff"}, "a.cls must hold a label"),
    ],
)
def test_a_broken_sample_is_named(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    write_tar(tmp_path / "w" / "0.tar", members)
    with pytest.raises(InputError, match=words):
        read_shards(root=tmp_path / "w")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "a.json must hold"),
        (b"[]", "a.json must hold"),
        (b'{"class": 1}', "a.json must hold a label under 'label'"),
        (b'{"label": [1]}', "a.json must hold a name or a whole number"),
        (b'{"label": null}', "the .json file of a.jpg: 'label' is empty"),
        (b'{"label": NaN}', r"a\.json must hold a label"),
        (b'{"label": 1.5}', "the .json file of a.jpg: a label must be .* got '1.5'"),
        (b'{"label": true}', "the .json file of a.jpg: a label must be .* got 'True'; write the names"),
    ],
)
def test_json_without_the_label_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    write_tar(tmp_path / "w" / "0.tar", {"a.jpg": b"x", "a.json": content})
    with pytest.raises(InputError, match=words):
        read_shards(root=tmp_path / "w", label_file="json")


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_a_shard_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    file = write_tar(tmp_path / "0.tar", samples(*range(20)))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) // 512 * 512 + 100])
    with pytest.raises(InputError, match=r"0.tar cannot be read as an uncompressed tar file"):
        read_shards(root=tmp_path)
    assert not (tmp_path / "cache" / "webdataset").exists(), "no partial index is kept"


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_shards(root=tmp_path / "nowhere")
    folder = tmp_path / "w"
    folder.mkdir()
    with pytest.raises(InputError, match=r"must hold WebDataset shards \(.tar\), and holds none$"):
        read_shards(root=folder)
    (folder / "0.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(InputError, match=r"0.tar.gz is compressed: unpack it"):
        read_shards(root=folder)
    (folder / "0.tar").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(InputError, match="cannot be read as an uncompressed tar file"):
        read_shards(root=folder)


def test_shards_of_which_only_some_name_their_split(tmp_path: Path) -> None:
    for name in ("train-0", "1"):
        write_tar(tmp_path / "w" / f"{name}.tar", samples(0, 1))
    with pytest.raises(InputError, match=r"1.tar does not, while others do"):
        read_shards(root=tmp_path / "w")
    (tmp_path / "w" / "1.tar").rename(tmp_path / "w" / "train-test.tar")
    with pytest.raises(InputError, match="must name one split, got test and train"):
        read_shards(root=tmp_path / "w")


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "w" / "0.tar", {"._a.jpg": b"x"} | samples(*[0] * 5))
    assert sum(len(part) for part in read_shards(root=tmp_path / "w").splits.values()) == 5


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '[["a.jpg", 1]]', "{}", "[NaN]", "no json"], ids=lambda text: text[:9]
)
def test_a_damaged_index_in_the_cache_is_made_again(content: str, tmp_path: Path) -> None:
    section = miniature(tmp_path)
    names = [read_shards(root=section["root"]).splits["train"].images.name(row) for row in range(16)]
    for index in (tmp_path / "cache" / "webdataset").iterdir():
        index.write_text(content)
    images = read_shards(root=section["root"]).splits["train"].images
    assert [images.name(row) for row in range(16)] == names


@pytest.mark.parametrize(
    "headers", [{"size": "9" * 30}, {"GNU.sparse.size": "abc"}, {"GNU.sparse.map": "1,a"}], ids=str
)
def test_a_shard_with_an_impossible_size_is_refused(headers: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size, member.pax_headers = 3, headers
        archive.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(InputError, match=r"0\.tar cannot be read as an uncompressed tar file"):
        read_shards(root=tmp_path)


@pytest.mark.parametrize(
    "label", ["[" * 100_000, '{"label": 1, "label": 2}', '{"label": NaN}', "[1]"], ids=lambda t: t[:9]
)
def test_a_label_in_damaged_json_is_refused_with_its_file(label: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", samples(label, kind="json"))
    with pytest.raises(InputError, match=r"0\.tar: s0\.json"):
        read_shards(root=tmp_path, label_file="json")


# -- names with dots, and what is passed over ------------------------------------------------------------------------
def images_of(data: Dataset) -> int:
    return sum(map(len, data.splits.values()))


def test_names_with_dots_are_samples(tmp_path: Path) -> None:
    members = samples(0, 0, 1, 1)
    for key, label in (("a_v1.2", 0), ("a_v1.3", 1), ("b/x.y.z", 1)):
        members |= sample(label, key)
    write_tar(tmp_path / "w" / "0.tar", members)
    data = read_shards(root=tmp_path / "w")
    assert (images_of(data), data.passed_over) == (7, {})


def test_every_member_is_used_or_passed_over(tmp_path: Path) -> None:
    members = samples(*[0, 1] * 3) | {
        "s0.seg.png": b"x",
        "s0.json": b"{}",
        "s0.AVIFX": b"x",
        "s9.cls": b"0",
        "._s0.jpg": b"x",
    }
    write_tar(tmp_path / "w" / "0.tar", members)
    for _ in range(2):  # the second time from the index
        data = read_shards(root=tmp_path / "w")
        expected = {
            "further images of a sample": 1,
            ".json": 1,
            ".avifx": 1,
            "labels without an image": 1,
            "hidden or special": 1,
        }
        assert data.passed_over == expected
        assert 2 * images_of(data) + sum(data.passed_over.values()) == len(members)


def test_a_sample_with_two_labels_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "w" / "0.tar", samples(0, 1) | {"s0.CLS": b"1"})
    with pytest.raises(InputError, match="a sample must have one label, 's0' has more"):
        read_shards(root=tmp_path / "w")


def test_unreadable_members_are_named_or_left_out(tmp_path: Path) -> None:
    members = samples(*[0, 1] * 4) | {"s0.jpg": b"x", "s3.jpg": encoded(".jpg", 3)[:300]}
    write_tar(tmp_path / "w" / "0.tar", members)
    with pytest.raises(InputError) as error:
        read_shards(root=tmp_path / "w")
    for words in (
        "2 images cannot be read",
        "0.tar/s0.jpg: cannot identify the image",
        "0.tar/s3.jpg: ",
        "data.on_error",
    ):
        assert words in str(error.value)
    assert "BytesIO" not in str(error.value)
    data = read_shards(root=tmp_path / "w", on_error="skip")
    assert (data.skipped, images_of(data)) == (["0.tar/s0.jpg", "0.tar/s3.jpg"], 6)


def test_verifying_one_shard_has_no_finding_for_each_image(tmp_path: Path) -> None:
    file = write_tar(tmp_path / "w" / "0.tar", samples(*[0, 1] * 4))
    report = verify(file, ignore=["duplicate", "near_duplicate", "label_conflict"])
    assert report.ok
    assert any("a WebDataset shard is read with its folder" in note for note in report.notes)
