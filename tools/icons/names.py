"""Turns icon names into concepts: `outline-arrow-left-24` and `arrow_left-filled` are both "arrow left".

Three kinds of words are dropped, always from the ends of a name and never all of it:

1. the suffixes and prefixes a set's own iconify metadata lists as styles or sizes;
2. words that mean a style wherever they end a name (`outline`, `filled`, `duotone`, `20px`, `alt`, ...), and plain
   numbers, which count variants of one drawing (`cloud 2`) or set the level of a gauge (`battery 50`);
3. words that may also be the concept (`line`, `light`, `bold`, `round`, ...), only in a set where at least 4 % of
   the names end with that word: `ri:home-line` is "home", `lucide:chart-line` stays "chart line".

Two spellings are then merged where that is safe: `light bulb` and `lightbulb` (the same letters in the same order), and
`left arrow` and `arrow left` (the same words in another order, unless two directions or `of`, `in`, ... make the
order matter). The most common spelling is used for all.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from tools.icons.source import IconSet

STYLES = frozenset(
    """
    alt alternate color colored duo duotone fill filled flat full2 glyph lg linear md outline outlined outlines
    px rounded sm solid stroke tone twotone variant xl xs small large big mini micro v1 v2 v3
    """.split()
)
AMBIGUOUS_STYLES = frozenset(
    "black bold broken bulk dark f hand light line o print r regular round s sharp square thick thin".split()
)
AMBIGUOUS_SHARE = 0.04
NUMBER_WORDS = frozenset("zero one two three four five six seven eight nine ten".split())
COUNTED_SETS = frozenset({"icon-park", "icon-park-outline", "icon-park-solid", "icon-park-twotone", "medical-icon"})
SHAPES = frozenset("circle square hexagon octagon pentagon diamond box number numeric letter 1".split())
SPELLINGS = {
    "colour": "color", "grey": "gray", "centre": "center", "favourite": "favorite", "organisation": "organization",
    "aeroplane": "airplane", "jewellery": "jewelry", "licence": "license", "catalogue": "catalog", "tyre": "tire",
}  # fmt: skip
DIRECTIONS = frozenset("left right up down top bottom north south east west".split())
ORDER_WORDS = frozenset("of in on to with and from by at for over under behind between into per vs no not".split())
STOP_PREFIXES = frozenset({"brand", "brands", "logo", "social", "sc", "bxl", "token"})

# Some sets begin names with the section of their catalogue.
SECTIONS: dict[str, tuple[str, ...]] = {
    "bx": ("bxs",),
    "bubbles": (),
    "icon-park": ("a",),
    "icon-park-outline": ("a",),
    "icon-park-solid": ("a",),
    "icon-park-twotone": ("a",),
    "ion": ("md", "ios"),
    "medical-icon": ("i",),
    "streamline-block": ("basic-ui", "arrows", "communication", "content", "devices", "other", "shopping", "time",
                         "weather", "file", "health", "nature", "travel", "social"),
    "streamline-guidance": ("accessibility", "elevator", "indication", "places", "services", "ui", "facilities", "food",
                            "prohibition", "transport", "wayfinding"),
    "guidance": (),
    "streamline-pixel": ("interface-essential", "food-drink", "beauty", "business-products", "business-product",
                         "business-money-payments", "business", "construction", "content-files", "design", "ecology",
                         "email", "entertainment-events-hobbies", "health", "internet-network", "logo", "music",
                         "pet-animals", "phone-actions", "phone", "school-science", "shopping-shipping",
                         "social-rewards", "sign-shape", "transportation", "travel-wayfind", "user", "video-movies",
                         "weather"),
}  # fmt: skip

SKIN = re.compile(r"^(.*?)-(?:medium-light|medium-dark|light|medium|dark)$")


def set_names(icon_set: IconSet, names: Sequence[str]) -> dict[str, str]:
    """The concept of every icon of one set; icons that show a brand, a flag or a skin tone are left out."""
    styles = _ambiguous_styles_of(names)
    known = frozenset(names)
    concepts = {}
    for name in names:
        if icon_set.emoji and _is_emoji_variant(name, known):
            continue
        concept = normalise(name, icon_set, styles)
        if concept:
            concepts[name] = concept
    return concepts


def normalise(name: str, icon_set: IconSet, ambiguous: frozenset[str] = frozenset()) -> str:
    """One icon's concept; "" where the name says that it is a brand.

    >>> normalise("arrow-left-24-filled", IconSet("x", "", "", "", "", "", False, ("24-filled",), ()))
    'arrow left'
    """
    name = name.lower().replace("_", "-")
    name = _strip(name, icon_set.style_suffixes, icon_set.style_prefixes)
    sections = sorted(SECTIONS.get(icon_set.prefix, ()), key=len, reverse=True)
    name = _strip(name, (), [section for section in sections if name.startswith(section + "-")][:1])
    name = re.sub(r"([a-z]{4,})(\d{1,2})\b", r"\1-\2", name)
    words = [SPELLINGS.get(word, word) for word in name.split("-") if word]
    if (words and words[0] in STOP_PREFIXES and len(words) > 1) or (words and words[-1] in {"logo", "brand"}):
        return ""
    counted = icon_set.prefix in COUNTED_SETS
    while len(words) > 1 and _droppable(words[-1], words[-2], ambiguous, counted):
        words.pop()
    return " ".join(words)


def _droppable(word: str, before: str, ambiguous: frozenset[str], counted: bool) -> bool:
    if word.isdigit() or (counted and word in NUMBER_WORDS):
        return before not in SHAPES
    return word in STYLES or word in ambiguous or re.fullmatch(r"\d+(px|x\d+)", word) is not None


def _strip(name: str, suffixes: Iterable[str], prefixes: Iterable[str]) -> str:
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.endswith("-" + suffix):
            name = name[: -len(suffix) - 1]
            break
    for prefix in sorted(prefixes, key=len, reverse=True):
        if name.startswith(prefix + "-"):
            return name[len(prefix) + 1 :]
    return name


def _ambiguous_styles_of(names: Sequence[str]) -> frozenset[str]:
    ends = Counter(re.split("[-_]", name)[-1] for name in names)
    return frozenset(word for word in AMBIGUOUS_STYLES if ends[word] >= max(3, AMBIGUOUS_SHARE * len(names)))


def _is_emoji_variant(name: str, known: frozenset[str]) -> bool:
    if "skin-tone" in name or (name.startswith("flag-") and not name.startswith("flag-in-")):
        return True
    match = SKIN.match(name)
    return match is not None and match[1] in known


def merge_spellings(counts: Mapping[str, int]) -> dict[str, str]:
    """Maps every name to the commonest of its safe spellings (ties: the alphabetically first)."""
    joined = _commonest(counts, lambda name: name.replace(" ", ""))
    pooled: Counter[str] = Counter()
    for name, target in joined.items():
        pooled[target] += counts[name]
    ordered = _commonest(pooled, _bag)
    return {name: ordered[target] for name, target in joined.items()}


def _bag(name: str) -> str:
    words = name.split()
    fixed = ORDER_WORDS.intersection(words) or sum(word in DIRECTIONS for word in words) > 1
    return name if fixed else " ".join(sorted(words))


def _commonest(counts: Mapping[str, int], key: Callable[[str], str]) -> dict[str, str]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        groups[key(name)].append(name)
    return {name: max(group, key=partial(_rank, counts)) for group in groups.values() for name in group}


def _rank(counts: Mapping[str, int], name: str) -> int:
    return counts[name]


def is_concept(name: str) -> bool:
    """Whether a name can be a class: not a lone character or number, not only styles and numbers."""
    words = name.split()
    plain = STYLES | AMBIGUOUS_STYLES | NUMBER_WORDS
    meaningful = [word for word in words if len(word) > 1 and not word.isdigit() and word not in plain]
    return bool(meaningful) and words != ["letter"]


# Names in the brand sets that are also ordinary words.
ORDINARY = frozenset(
    """
    apple arc anchor aperture archive artifact at atom audio auto badge beats book bookmark bot bowl box brave
    browser buffer bug bulb bun calendar camera cart castle chai chat cherry clock cloud coffee compass cube
    diamond disc docs drive drone eagle echo element email envelope eye feather file fire flask flow folder fork
    forge fox gear ghost gift git globe go grid hashtag helm heart home house hub image infinity ink iris item
    jar key kite lamp leaf lens letter lion link list lock love mail map mask meteor meteorite moon mountain
    music node nova octopus orange origin palette panda paper pen pencil people phoenix photo pi pin pixel plane
    plus podcast pointer polygon printer puzzle r rabbit radar ring robot rocket rss safari sailboat sales
    scissors scratch screen search send server shell shield signal slash slides snake snowflake spark sparkle
    spinner spring square stack star strawberry sun swarm table target tent ticket tower tree triangle trophy
    umbrella valve vector video wave web wheel wire wolf world x
    """.split()
)


def brands(package_names: Iterable[Iterable[str]]) -> frozenset[str]:
    """Names that at least two of the given brand sets draw, except ordinary words."""
    votes: Counter[str] = Counter()
    for names in package_names:
        votes.update({name.lower().replace("-", " ") for name in names})
    return frozenset(name for name, count in votes.items() if count >= 2) - ORDINARY
