"""Reads the npm package `@iconify/json`: the sets that may be used, and every drawing in them.

Iconify's format: a set has default `left`, `top`, `width`, `height`; an icon may override each of them, and an alias
names a parent icon and may rotate or mirror it. An alias that only renames an icon is skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "@iconify/json"
VERSION = "2.2.535"

LICENSES = frozenset(
    {
        "MIT", "Apache-2.0", "ISC", "CC0-1.0", "BSD-2-Clause", "BSD-3-Clause", "OFL-1.1", "Unlicense", "CC-BY-4.0",
    }
)  # fmt: skip

# Drawings of companies, file types, countries and coins: their names are proper names, not concepts.
LEFT_OUT_CATEGORIES = frozenset({"Logos"})
LEFT_OUT_SETS = frozenset(
    """
    academicons brandico catppuccin cif circle-flags devicon devicon-line devicon-original devicon-plain fa-brands
    fa6-brands fa7-brands file-icons flag flagpack gcp k8s material-icon-theme nonicons skill-icons svg-spinners
    unjs vscode-icons
    """.split()
)


@dataclass(frozen=True)
class IconSet:
    """One icon set, with what the attribution needs, and the words that its own metadata calls styles."""

    prefix: str
    title: str
    author: str
    license: str
    license_url: str
    url: str
    emoji: bool
    style_suffixes: tuple[str, ...]
    style_prefixes: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """One icon as SVG; `turns` quarter turns clockwise are applied after the mirroring."""

    set: str
    name: str
    body: str
    box: tuple[float, float, float, float]  # left, top, width, height
    mirror_x: bool = False
    mirror_y: bool = False
    turns: int = 0


def fetch(work: Path) -> Path:
    """Downloads the pinned package with npm into `work` and unpacks it, once; returns the package folder."""
    package = work / "package"
    if (package / "collections.json").is_file():
        return package
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm is needed to fetch {PACKAGE}@{VERSION}; or unpack it yourself and pass --source DIR")
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "pack", f"{PACKAGE}@{VERSION}"], cwd=work, check=True)
    with tarfile.open(work / f"iconify-json-{VERSION}.tgz") as archive:
        archive.extractall(work, filter="data")
    return package


def read_sets(package: Path) -> list[tuple[IconSet, list[Drawing]]]:
    """All usable sets in alphabetical order, each with its drawings in alphabetical order."""
    sets = []
    for path in sorted((package / "json").glob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        if usable(data):
            sets.append((_icon_set(data), drawings(data)))
    return sets


def usable(data: dict[str, Any]) -> bool:
    """Whether licence and subject of a set allow it into the data."""
    info = data["info"]
    return (
        info["license"].get("spdx") in LICENSES
        and info.get("category") not in LEFT_OUT_CATEGORIES
        and data["prefix"] not in LEFT_OUT_SETS
    )


def _icon_set(data: dict[str, Any]) -> IconSet:
    info = data["info"]
    return IconSet(
        prefix=data["prefix"],
        title=info["name"],
        author=info["author"]["name"],
        license=info["license"]["spdx"],
        license_url=info["license"].get("url", ""),
        url=info["author"].get("url", ""),
        emoji=info.get("category") == "Emoji" or "emoji" in data["prefix"],
        style_suffixes=tuple(sorted(s for s in data.get("suffixes", {}) if s)),
        style_prefixes=tuple(sorted(p for p in data.get("prefixes", {}) if p)),
    )


def drawings(data: dict[str, Any]) -> list[Drawing]:
    """The icons of a set and those aliases that rotate or mirror one; hidden and animated ones are left out."""
    icons, aliases = data["icons"], data.get("aliases", {})
    names = sorted([*icons, *(name for name in aliases if name not in icons)])
    resolved = (_resolve(data, name) for name in names)
    return [drawing for drawing in resolved if drawing is not None]


def _resolve(data: dict[str, Any], name: str) -> Drawing | None:
    icons, aliases = data["icons"], data.get("aliases", {})
    x = y = False
    turns = 0
    overrides: dict[str, float] = {}
    here = name
    for _ in range(8):  # iconify allows chains of aliases; a longer one is a cycle
        entry = icons.get(here) or aliases.get(here)
        if entry is None or entry.get("hidden"):
            return None
        x ^= bool(entry.get("hFlip"))
        y ^= bool(entry.get("vFlip"))
        turns += int(entry.get("rotate", 0))
        overrides = {**{k: entry[k] for k in ("left", "top", "width", "height") if k in entry}, **overrides}
        if "body" in entry:
            break
        here = entry["parent"]
    else:
        return None
    turns %= 4
    if (here != name and not (x or y or turns)) or _animated(entry["body"]):
        return None
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}
    left, top, width, height = (float({**defaults, **data, **overrides}[k]) for k in defaults)
    return Drawing(data["prefix"], name, entry["body"], (left, top, width, height), x, y, turns)


def _animated(body: str) -> bool:
    """Whether an icon moves: a single frame of it is arbitrary, and often blank."""
    return "<animate" in body or "<set " in body


def brand_names(package: Path) -> list[list[str]]:
    """The icon names of the sets that draw brands, whatever their licence: only the names are read."""
    prefixes = ("simple-icons", "logos", "cib", "bxl", "fa6-brands", "fa7-brands", "streamline-logos", "skill-icons")
    paths = [package / "json" / f"{prefix}.json" for prefix in prefixes]
    return [list(json.loads(path.read_text("utf-8"))["icons"]) for path in paths if path.is_file()]
