"""`tools/build_icons.py`: concepts from names, families of forks, near-duplicates, and reproducible files."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import build_icons  # noqa: E402
from tools.icons import families, hashing, names, pool, render, source, split, topics  # noqa: E402


def _icon_set(
    prefix: str = "some", suffixes: tuple[str, ...] = (), prefixes: tuple[str, ...] = (), emoji: bool = False
) -> source.IconSet:
    return source.IconSet(prefix, "Some", "Somebody", "MIT", "", "", emoji, suffixes, prefixes)


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("arrow-left", "arrow left"),
        ("arrow_left-filled", "arrow left"),
        ("home-outline", "home"),
        ("home-24", "home"),
        ("home-20px", "home"),
        ("home-2", "home"),
        ("layers2", "layers"),
        ("user-alt-solid", "user"),
        ("outline", "outline"),
        ("chart-line", "chart line"),
        ("light-bulb", "light bulb"),
        ("circle-1", "circle 1"),
        ("3d-cube", "3d cube"),
        ("colour-palette", "color palette"),
        ("brand-github", ""),
        ("github-logo", ""),
    ],
)
def test_names_become_concepts(name: str, concept: str) -> None:
    assert names.normalise(name, _icon_set()) == concept


def test_words_that_a_set_lists_as_styles_are_dropped() -> None:
    assert names.normalise("home-24-filled", _icon_set(suffixes=("24-filled",))) == "home"
    assert names.normalise("twotone-home", _icon_set(prefixes=("twotone",))) == "home"


def test_line_is_a_style_only_where_many_names_end_with_it() -> None:
    styled = names.set_names(_icon_set(), ["home-line", "sun-line", "chart-line", "user-line"])
    charts = ["chart-line", "road-line", "dot-line"]
    plain = names.set_names(_icon_set(), [*charts, *(f"thing-{a}{b}" for a in "abcdefghij" for b in "abcdefghij")])
    assert styled["home-line"] == "home"
    assert plain["chart-line"] == "chart line"


def test_emoji_leave_out_flags_and_skin_tones() -> None:
    icons = ["waving-hand", "waving-hand-dark", "man-light-skin-tone", "flag-for-peru", "flag-in-hole"]
    assert set(names.set_names(_icon_set(emoji=True), icons)) == {"waving-hand", "flag-in-hole"}


def test_spellings_merge_where_word_order_does_not_matter() -> None:
    counts = {
        "lightbulb": 5,
        "light bulb": 3,
        "left arrow": 2,
        "arrow left": 9,
        "arrow left down": 4,
        "arrow down left": 1,
    }
    merged = names.merge_spellings(counts)
    assert merged["light bulb"] == merged["lightbulb"] == "lightbulb"
    assert merged["left arrow"] == "arrow left"
    assert merged["arrow left down"] != merged["arrow down left"]


@pytest.mark.parametrize(
    ("name", "concept"), [("home", True), ("tv", True), ("a", False), ("7", False), ("outline", False), ("two", False)]
)
def test_letters_numbers_and_styles_are_not_concepts(name: str, concept: bool) -> None:
    assert names.is_concept(name) is concept


def test_brands_are_names_of_two_brand_sets_that_are_not_things() -> None:
    assert names.brands([["github", "apple"], ["github", "apple", "only-here"]]) == {"github"}


@pytest.fixture
def no_related(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "RELATED", ())


@pytest.mark.usefixtures("no_related")
def test_forks_of_forks_are_one_family_named_after_the_largest() -> None:
    sizes = {"a": 10, "b": 30, "c": 20, "alone": 99}
    shares = {("a", "b"): 0.9, ("b", "c"): 0.9, ("a", "alone"): 0.1}
    assert families.group(sizes, shares) == {"a": "b", "b": "b", "c": "b", "alone": "alone"}


def test_sets_listed_as_related_are_one_family_without_shares() -> None:
    family = families.group({"mdi": 3, "ic": 2, "tabler": 5}, {})
    assert family["mdi"] == family["ic"] == "mdi"
    assert family["tabler"] == "tabler"


def test_fork_shares_count_concepts_that_look_alike() -> None:
    rng = np.random.default_rng(0)
    number = families.MIN_SHARED + 5
    concepts = [f"thing {i}" for i in range(number)]
    original, other = rng.integers(0, 2**63, (2, number, 2)).astype(np.uint64)
    forked = original.copy()
    forked[:, 0] ^= np.uint64(1)
    forked[: number // 2] = rng.integers(0, 2**63, (number // 2, 2)).astype(np.uint64)
    sets = ["original"] * number + ["fork"] * number + ["other"] * number
    shares = families.fork_shares(sets, concepts * 3, np.concatenate([original, forked, other]))
    assert shares["fork", "original"] == pytest.approx(0.5)
    assert shares["original", "other"] == shares["fork", "other"] == 0


def test_near_pairs_equal_those_of_all_comparisons() -> None:
    rng = np.random.default_rng(1)
    pool = rng.integers(0, 2**63, (200, 2)).astype(np.uint64)
    queries = np.concatenate([pool[:40], rng.integers(0, 2**63, (40, 2)).astype(np.uint64)])
    for row in range(40):
        for bit in rng.choice(64, row % 10, replace=False):
            queries[row, row % 2] ^= np.uint64(1) << np.uint64(bit)
    expected = [
        (i, j)
        for i in range(len(queries))
        for j in range(len(pool))
        if sum(int(a ^ b).bit_count() for a, b in zip(queries[i].tolist(), pool[j].tolist(), strict=True)) <= 6
    ]
    left, right = hashing.near_pairs(queries, pool, 6)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == expected
    assert 20 < len(expected) < 40


def test_the_corpus_leaves_out_near_duplicates_of_test_drawings() -> None:
    rng = np.random.default_rng(2)
    hashes = rng.integers(0, 2**63, (60, 2)).astype(np.uint64)
    hashes[10] = hashes[50]
    hashes[11] = hashes[50] ^ np.uint64(0b111)  # 3 bits in each of two words: at the threshold
    hashes[12] = hashes[50] ^ np.array([0b1111, 0b111], np.uint64)  # 7 bits: beyond it
    candidates, tested = np.arange(50), np.arange(50, 60)
    rows = split.corpus_rows(candidates, hashes, tested)
    assert set(candidates) - set(rows) == {10, 11}
    assert rows.tolist() != sorted(rows)
    assert rows.tolist() == split.corpus_rows(candidates, hashes, tested).tolist()


def _package(folder: Path) -> Path:
    """Eight sets by eight people: thirty shapes, each drawn by all of them in four slightly different versions."""
    (folder / "json").mkdir(parents=True)
    rng = np.random.default_rng(0)
    shapes = rng.uniform(2, 22, (30, 6, 2))
    for index in range(8):
        icons: dict[str, Any] = {}
        for shape in range(30):
            for style in range(4):
                points = shapes[shape] + rng.normal(0, 1.6, (6, 2))
                path = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) + "z"
                word = f"{chr(97 + shape // 6)}thing{chr(97 + shape % 6)}"
                colour = "currentColor" if style else "#c33"
                icons[f"{word}-{style + 1}"] = {"body": f'<path fill="{colour}" d="{path}"/>'}
        icons["empty"] = {"body": '<path fill="none" d="M0 0h2z"/>'}
        _write_set(folder, f"set{index}", icons, {"renamed": {"parent": "athinga-1"}})
    return folder


def _write_set(folder: Path, prefix: str, icons: dict[str, Any], aliases: dict[str, Any], licence: str = "MIT") -> None:
    info = {"name": prefix, "author": {"name": f"The {prefix}"}, "license": {"spdx": licence}, "category": "UI 24px"}
    data = {"prefix": prefix, "info": info, "width": 24, "height": 24, "icons": icons, "aliases": aliases}
    (folder / "json" / f"{prefix}.json").write_text(json.dumps(data), encoding="utf-8")


def test_the_same_package_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resvg_py", reason="needs resvg_py (extra build-icons)")
    package = _package(tmp_path / "package")
    # Eight small sets cannot fill classes of 18 images from 5 families, and there is no brand set.
    monkeypatch.setattr(pool, "brand_names", lambda package: [])
    limits = {"MIN_FAMILIES": 2, "MIN_IMAGES": 6, "TEST_IMAGES": 2, "VAL_IMAGES": 1, "KNOWN_BY": 1}
    for name, value in (limits | {"CLASSES": (1, 30), "TRIES": 20, "CORPUS_SHARE": (0.3, 0.9)}).items():
        monkeypatch.setattr(split, name, value)
    shapes = {f"{letter}thing{other}" for letter in "abcde" for other in "abcdef"}
    topic = topics.Topic("icons_shapes", "a {}", True, {shape: (shape,) for shape in shapes})
    monkeypatch.setattr(build_icons, "read_topics", lambda: [topic])
    digests = []
    for run in ("first", "second"):
        out, assets = tmp_path / run, tmp_path / run / "assets"
        build_icons.build(package, out, assets, processes=1)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        digests.append({str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0] == digests[1]
    assert {"pretrain_images.npy", "pretrain.tsv", "assets/icons_lt/grey.bin", "assets/icons_shapes/colour.bin"} <= set(
        digests[0]
    )
    index = json.loads((tmp_path / "first" / "assets" / "icons_lt" / "classes.json").read_text(encoding="utf-8"))
    assert len(index["names"]) >= 10
    assert min(index["grey"], index["colour"]) > 0
    corpus = np.load(tmp_path / "first" / "pretrain_images.npy")
    assert len(corpus) > 100
    lines = (tmp_path / "first" / "pretrain.tsv").read_text(encoding="utf-8").splitlines()
    assert corpus.shape == (len(lines) - 1, 32, 32, 3)
    assert lines[0].split("\t") == ["row", "set", "family", "icon", "caption"]
    assert not [line for line in lines if "\tempty\t" in line or "\trenamed\t" in line]


def test_only_usable_sets_and_still_drawings_are_read(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    body = {"body": '<path d="M2 2h9v4z"/>'}
    moving = {"body": '<path d="M2 2h9v4z"><animate attributeName="d"/></path>'}
    aliases = {"other-name": {"parent": "home"}, "home-right": {"parent": "home", "hFlip": True}}
    _write_set(tmp_path, "good", {"home": body, "gone": {**body, "hidden": True}, "loop": moving}, aliases)
    _write_set(tmp_path, "copyleft", {"home": body}, {}, licence="GPL-3.0")
    _write_set(tmp_path, "share-alike", {"home": body}, {}, licence="CC-BY-SA-4.0")
    _write_set(tmp_path, "fa-brands", {"home": body}, {})
    ((icon_set, drawings),) = source.read_sets(tmp_path)
    assert icon_set.prefix == "good"
    assert [(drawing.name, drawing.mirror_x) for drawing in drawings] == [("home", False), ("home-right", True)]


def test_icons_are_black_on_white_unstretched_and_turned_as_iconify_says() -> None:
    pytest.importorskip("resvg_py", reason="needs resvg_py (extra build-icons)")
    left = '<path fill="currentColor" d="M0 0h12v12H0z"/>'
    drawing = source.Drawing("some", "corner", left, (0, 0, 24, 24))
    pixels = render.render(drawing)
    assert (pixels[:16, :16] == 0).all()
    assert (pixels[16:] == 255).all()
    turned = render.render(source.Drawing("some", "corner", left, (0, 0, 24, 24), turns=1))
    mirrored = render.render(source.Drawing("some", "corner", left, (0, 0, 24, 24), mirror_x=True))
    for other in (turned, mirrored):  # a quarter turn clockwise takes the top left to the top right
        assert (other[:16, 16:] == 0).all()
        assert (other[:, :16] == 255).all()
    wide = render.render(source.Drawing("some", "bar", '<path d="M0 0h48v24H0z"/>', (0, 0, 48, 24)))
    assert (wide[8:24] == 0).all()
    assert (wide[:8] == 255).all()


def test_blank_renders_are_detected_and_levels_rounded() -> None:
    images = np.full((2, 32, 32, 3), 255, np.uint8)
    images[1, 8:20, 8:20] = 3
    assert render.nearly_blank(images).tolist() == [True, False]
    assert set(np.unique(render.quantise(images))) == {0, 255}
