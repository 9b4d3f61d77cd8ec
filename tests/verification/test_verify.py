"""`verify` as a whole: every kind of damage is found, once, and nothing is written beside the data."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imbalance_vlm.cli import main
from imbalance_vlm.errors import InputError
from imbalance_vlm.verification import report
from imbalance_vlm.verification import verify as verifying
from imbalance_vlm.verification.collection import collect
from imbalance_vlm.verification.contact_sheet import show
from imbalance_vlm.verification.published import PUBLISHED, compare
from imbalance_vlm.verification.remembered import MOST_FILES, Remembered
from imbalance_vlm.verification.verify import KINDS, verify
from tests.data.miniatures import MINIATURES, TRAIN_COUNTS, imagenet_lt, places_lt, table
from tests.data.shared import LISTS, needs_lists
from tests.verification.test_inspecting import encoded, huge_png, photograph

Capture = pytest.CaptureFixture[str]


def write(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(photograph(seed, 32), "PNG" if file.suffix == ".png" else "JPEG"))
    return file


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """train/ and test/ of two classes, in which nothing is wrong."""
    root = tmp_path / "photos"
    for label, name in enumerate(("cat", "dog")):
        for number in range(4 - label):
            write(root / "train" / name / f"{number}.jpg", 10 * label + number)
        for number in range(2):
            write(root / "test" / name / f"{number}.png", 100 + 10 * label + number)
    return root


def found_in(root: Path, **settings: Any) -> dict[str, str]:
    findings = verify(root, **settings).findings
    return dict(zip(findings["path"], findings["kind"], strict=True))


def test_a_sound_folder_has_no_findings(sound: Path) -> None:
    found = verify(sound)
    assert found.ok, found.findings
    assert {split: counts.tolist() for split, counts in found.counts.items()} == {"train": [4, 3], "test": [2, 2]}
    assert [len(labels) for labels in found.groups.values()] == [0, 0, 2]
    assert "many (> 100) none" in report.text(found)


def cut(root: Path) -> str:
    file = root / "train/cat/0.jpg"
    file.write_bytes(file.read_bytes()[:-80])
    return "train/cat/0.jpg"


def emptied(root: Path) -> str:
    (root / "train/cat/0.jpg").write_bytes(b"")
    return "train/cat/0.jpg"


def text_inside(root: Path) -> str:
    (root / "train/cat/0.jpg").write_text("a web page, say")
    return "train/cat/0.jpg"


def bomb(root: Path) -> str:
    (root / "train/cat/bomb.png").write_bytes(huge_png())
    return "train/cat/bomb.png"


def dangling(root: Path) -> str:
    (root / "train/cat/link.jpg").symlink_to(root / "gone.jpg")
    return "train/cat/link.jpg"


def pipe(root: Path) -> str:
    os.mkfifo(root / "train/cat/pipe.jpg")
    return "train/cat/pipe.jpg"


def copied(source: str, target: str) -> Callable[[Path], str]:
    def copy(root: Path) -> str:
        shutil.copy(root / source, root / target)
        return target

    return copy


def near_copy(target: str) -> Callable[[Path], str]:
    def copy(root: Path) -> str:
        with Image.open(root / "train/cat/1.jpg") as image:
            image.resize((48, 48)).save(root / target, quality=60)
        return target

    return copy


def empty_class(root: Path) -> str:
    (root / "train" / "emu").mkdir()
    return "train/emu"


DAMAGE: dict[str, tuple[str, Callable[[Path], str]]] = {
    "cut": ("truncated", cut),
    "emptied": ("zero_byte", emptied),
    "text": ("unreadable", text_inside),
    "bomb": ("bomb", bomb),
    "dangling": ("missing", dangling),
    "pipe": ("unreadable", pipe),
    "duplicate": ("duplicate", copied("train/cat/0.jpg", "train/cat/copy.jpg")),
    "conflict": ("label_conflict", copied("train/cat/0.jpg", "train/dog/copy.jpg")),
    "leak": ("leak", copied("train/cat/0.jpg", "test/cat/copy.jpg")),
    "near": ("near_duplicate", near_copy("train/cat/near.jpg")),
    "near_leak": ("near_leak", near_copy("test/cat/near.jpg")),
    "empty_class": ("empty_class", empty_class),
}


def test_images_that_only_share_their_hash_are_not_near(sound: Path) -> None:
    rows, columns = np.indices((9, 9))
    for name, step in (("left", columns >= 1), ("bottom", rows == 8)):  # brighter to the right and downwards, both
        squares = (rows + columns + 150 * step).astype(np.uint8)
        Image.fromarray(np.kron(squares, np.ones((8, 8), np.uint8))).save(sound / "train" / "cat" / f"{name}.png")
    assert found_in(sound) == {}
    shutil.copy(sound / "train/cat/left.png", sound / "train/cat/same.png")
    assert found_in(sound) == {"train/cat/same.png": "duplicate"}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_once_and_by_name(sound: Path, what: str) -> None:
    kind, damage = DAMAGE[what]
    path = damage(sound)
    assert found_in(sound) == {path: kind}


def test_an_archive_of_a_damaged_folder_has_the_same_findings(sound: Path, tmp_path: Path) -> None:
    names = [name for name in DAMAGE if name not in ("cut", "emptied", "text", "near_leak")]  # one damage to a file
    for name in names:
        DAMAGE[name][1](sound)
    file = tmp_path / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(sound.rglob("*")):
            if path.is_file() and not path.is_symlink():
                archive.write(path, f"photos/{path.relative_to(sound).as_posix()}")
    inside = {path.removeprefix("photos/"): kind for path, kind in found_in(file).items()}
    outside = found_in(sound)
    assert set(outside.values()) == {DAMAGE[name][0] for name in names}
    assert inside == {path: kind for path, kind in outside.items() if path not in _only_on_disk}


_only_on_disk = ("train/cat/link.jpg", "train/cat/pipe.jpg", "train/emu")


def listing_of(root: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in root.rglob("*"))


def test_nothing_is_written_beside_the_data(sound: Path) -> None:
    cut(sound)
    before = listing_of(sound)
    assert main(["data", "verify", str(sound), "--out", "report"]) == 1
    assert main(["data", "show", str(sound), "--out", "sheet.png"]) == 0
    assert listing_of(sound) == before
    for place in (sound, sound / "train" / "report"):
        assert main(["data", "verify", str(sound), "--out", str(place)]) == 2
        assert main(["data", "show", str(sound), "--out", str(place / "sheet.png")]) == 2
    assert listing_of(sound) == before


def test_a_second_call_looks_only_at_what_has_changed(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    inspect_all = verifying.inspect_all

    def counted(places: Any, workers: int) -> Any:
        looked.append(len(places))
        return inspect_all(places, workers)

    monkeypatch.setattr(verifying, "inspect_all", counted)
    first = verify(sound)
    assert verify(sound).findings.equals(first.findings)
    cut(sound)
    assert verify(sound).tally == verify(sound).tally == {"truncated": 1}
    assert looked == [11, 0, 1, 0]


def test_what_a_killed_call_has_found_is_kept(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect_all = verifying.inspect_all

    def killed(places: Any, workers: int) -> Any:
        for number, found in inspect_all(places, workers):
            if number == 6:
                raise KeyboardInterrupt
            yield number, found

    monkeypatch.setattr(verifying, "inspect_all", killed)
    with pytest.raises(KeyboardInterrupt):
        verify(sound)
    looked: list[int] = []
    monkeypatch.setattr(verifying, "inspect_all", lambda places, workers: looked.append(len(places)) or iter(()))
    verify(sound)
    assert looked == [5]


def test_memory_survives_damage_and_many_files(tmp_path: Path) -> None:
    from imbalance_vlm.verification.inspecting import Inspected

    for number in range(MOST_FILES + 2):
        one = Remembered("home")
        one.add(f"{number}.jpg", number, 7, Inspected("truncated", "cut"))
        one.flush()
    assert len(list(one.folder.glob("*.json"))) <= 2
    (one.folder / "0.json").write_text("{half")
    (one.folder / "1.json").write_text('{"5.jpg": [5, 7, "x", "a", "b", "c", 1, 2, 3, 4]}')
    again = Remembered("home")
    assert again.get("4.jpg", 4, 7) == Inspected("truncated", "cut")
    assert again.get("4.jpg", 4, 8) is None
    assert Remembered("elsewhere").get("4.jpg", 4, 7) is None


# -- sources ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MINIATURES)
def test_every_dataset_is_verified_through_its_reader(name: str, tmp_path: Path) -> None:
    section = MINIATURES[name](tmp_path / "data")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"data": section}))
    found = verify(str(tmp_path / "own.yaml"))
    assert not {"missing", "truncated", "unreadable", "zero_byte", "bomb"} & set(found.tally)
    assert (found.published is not None) == (name in PUBLISHED)
    assert ("published" in found.tally) == (name in PUBLISHED)


def test_missing_images_of_a_list_are_all_named_and_counted(tmp_path: Path) -> None:
    section = imagenet_lt(tmp_path / "data")
    gone = sorted(Path(section["root"]).rglob("*_0.JPEG"))
    for file in gone:
        file.unlink()
    found = verify({"data": section}, near=-1)
    missing = found.findings[found.findings["kind"] == "missing"]
    assert sorted(missing["path"]) == [file.relative_to(section["root"]).as_posix() for file in gone]
    assert found.counts["train"].tolist() == list(TRAIN_COUNTS)


def test_without_any_image_the_lists_are_still_compared(tmp_path: Path) -> None:
    section = places_lt(tmp_path / "data")
    shutil.rmtree(Path(section["root"]) / "train")
    shutil.rmtree(Path(section["root"]) / "val")
    found = verify({"data": section})
    total = sum(int(counts.sum()) for counts in found.counts.values())
    assert found.tally["missing"] == total
    assert found.published is not None


@needs_lists
def test_the_real_places_lists_agree_with_the_published_table(tmp_path: Path) -> None:
    found = verify({"data": {"name": "places_lt", "root": str(tmp_path), "lists": str(LISTS)}}, ignore=["missing"])
    assert found.ok
    assert found.published is not None
    assert found.published["agrees"].all()
    assert [len(labels) for labels in found.groups.values()] == [131, 163, 71]


def test_a_table_without_splits_stays_whole(tmp_path: Path) -> None:
    section = table(tmp_path)
    found = verify(section["file"])
    assert {split: int(counts.sum()) for split, counts in found.counts.items()} == {"all": 16}
    assert any("counted together" in said for said in found.notes)
    with pytest.raises(InputError, match="label_column"):
        verify(section["file"], ["label_column=species"])


def test_a_report_may_lie_beside_a_table_but_not_among_its_images(tmp_path: Path) -> None:
    section = table(tmp_path)
    file = Path(section["file"])
    assert main(["data", "verify", str(file), "--out", str(file.parent / "report"), "--near", "-1"]) == 0
    assert main(["data", "verify", str(file), "--out", str(file.parent / "images" / "report")]) == 2


def test_a_difference_from_a_figure_to_be_checked_is_no_finding() -> None:
    counts = [1000] + [2] * 8141
    rows = compare("inat2018", {"train": 437_513, "test": 1}, counts, {"many": 1, "medium": 0, "few": 8141})
    marks = {fact: (checked, agrees) for fact, _, _, checked, agrees in rows.itertuples(index=False)}
    assert marks["many classes"] == (False, False)
    assert marks["test images"] == (True, False)
    assert marks["train images"] == (True, True)


def test_a_thinned_benchmark_is_not_compared(tmp_path: Path) -> None:
    section = imagenet_lt(tmp_path / "data") | {"shots": 1}
    found = verify({"data": section})
    assert found.published is None
    assert any("shots" in said for said in found.notes)


# -- labels ----------------------------------------------------------------------------------------------------------
def test_a_wrong_label_among_neighbours_is_suspected(recipe: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "colours"
    shutil.copytree(recipe["data"]["root"], root)
    os.replace(root / "train/red_apple/0.png", root / "train/blue_car/wrong.png")
    given = recipe | {"data": {"name": "folder", "root": str(root)}}
    found = verify(given, embeddings=True, neighbours=5, near=-1, device="cpu")
    suspected = found.findings[found.findings["kind"] == "label_suspect"]
    assert ("train/blue_car/wrong.png", "red apple") in set(zip(suspected["path"], suspected["other"], strict=True))
    with pytest.raises(InputError, match="encoder"):
        verify(root, embeddings=True)


def test_features_come_from_the_cache_of_a_run(recipe: dict[str, Any]) -> None:
    from imbalance_vlm import run
    from imbalance_vlm.encoders.cache import FeatureCache

    run(recipe)
    before = {entry.folder.name for entry in FeatureCache().entries()}
    verify(recipe, embeddings=True, near=-1, device="cpu")
    assert {entry.folder.name for entry in FeatureCache().entries()} == before
    assert len(before) == 2


def test_agreement_is_that_of_the_nearest_by_hand() -> None:
    import torch

    from imbalance_vlm.verification.suspects import agreement

    rng = np.random.default_rng(0)
    keys = rng.normal(size=(40, 3))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    labels = (keys[:, 0] > 0).astype(int)
    made = agreement(torch.tensor(keys), torch.tensor(keys), torch.tensor(labels), 4, range(40)).tolist()
    for row in range(40):
        others = sorted((o for o in range(40) if o != row), key=lambda o: -float(keys[row] @ keys[o]))[:4]
        said = {int(labels[o]) for o in others}
        assert made[row] == (said.pop() if len(said) == 1 else -1)
    assert -1 in made


# -- the command line ------------------------------------------------------------------------------------------------
def test_report_and_exit_status(sound: Path, capsys: Capture) -> None:
    assert main(["data", "verify", str(sound)]) == 0
    assert "findings: none" in capsys.readouterr().out
    cut(sound)
    assert main(["data", "verify", str(sound), "--out", "report"]) == 1
    printed = capsys.readouterr().out
    assert "truncated: 1" in printed
    assert "train/cat/0.jpg" in printed
    files = {path.name for path in Path("report").iterdir()}
    assert files == {"report.md", "report.json", "findings.csv", "classes.csv", "classes.png"}
    content = json.loads(Path("report/report.json").read_text())
    assert content["findings"] == {"truncated": 1}
    assert content["groups"] == {"many": None, "medium": None, "few": 2}
    assert main(["data", "verify", str(sound), "--ignore", "truncated"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such_recipe"], "packaged recipe"),
        (["no/such/folder"], "neither a folder"),
        (["none.zip"], "no such file"),
        (["none.csv"], "no such file"),
        (["{sound}", "rot=1"], "Did you mean 'root'"),
        (["{sound}", "--ignore", "truncate"], "Did you mean 'truncated'"),
        (["{sound}", "--near", "99"], "`near` must be"),
        (["{sound}", "--embeddings"], "encoder"),
        (["{sound}/train/cat/0.jpg"], "must be a recipe"),
        (["{sound}/train/cat"], "class folders"),
    ],
)
def test_bad_input_is_one_clear_error(sound: Path, arguments: list[str], said: str, capsys: Capture) -> None:
    assert main(["data", "verify", *(word.replace("{sound}", str(sound)) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_every_kind_and_every_published_number_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for facts in PUBLISHED.values():
        if facts.groups is not None:
            groups = "/".join(map(str, facts.groups)) + (" [check]" if facts.unchecked else "")
            assert f"| {facts.largest}/{facts.smallest} | {groups} |" in page
            assert all(f"{count:,} |" in page for count in (facts.images or {}).values())
    assert not [kind for kind in KINDS if f"`{kind}`" not in page]


# -- the contact sheet -----------------------------------------------------------------------------------------------
def test_the_sheet_has_head_and_tail(sound: Path) -> None:
    assert show(sound, classes=1, images=3).size == (220 + 3 * 102 + 6, 2 * 102 + 6)  # all classes, once
    write(sound / "train" / "emu" / "1.jpg", 7)
    assert show(sound, classes=1, images=3).size == (220 + 3 * 102 + 6, 2 * 102 + 6 + 6)  # and a line between
    assert show(sound, classes=5, images=3).size == (220 + 3 * 102 + 6, 3 * 102 + 6)
    cut(sound)
    show(sound, classes=1, images=3, out=Path("sheet.png"))
    with Image.open("sheet.png") as image:
        assert image.getpixel((230, 10)) == (225, 205, 205)


def test_a_collection_names_what_it_came_from(sound: Path) -> None:
    made = collect(sound)
    assert made.roots[0] == sound
    assert made.splits == ["train", "test"]
    assert {image.split for image in made.images} == {"train", "test"}
