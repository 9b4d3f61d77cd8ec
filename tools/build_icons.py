"""Build Icons-LT and mini-clip's pre-training corpus from the npm package `@iconify/json`.

    python tools/build_icons.py --work build/icons                 download with npm, then build
    python tools/build_icons.py --source PACKAGE --out build/icons  from an unpacked package

Takes about four minutes on 2 cores, and the same input gives the same bytes. It writes

- the dataset into imbalance_vlm/assets/icons_lt (see tools/icons/pack.py for the format), and
- the corpus into --out, not shipped: pretrain_images.npy, uint8 (N, 32, 32, 3), and pretrain.tsv (row, set, family,
  icon name, caption), shuffled once, so that its first N/27, N/9 and N/3 rows are the smaller corpora.

Steps: read the usable sets (tools/icons/source.py) -> concepts from names (names.py) -> render and round to 16 levels
(render.py) -> perceptual hashes (hashing.py) -> families of sets (families.py) -> families for the classes and families
for pre-training, classes, splits, corpus (split.py) -> files (pack.py). `report.txt` in --out has the numbers of each.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.icons import names as naming
from tools.icons.families import MIN_SHARE, fork_shares, group
from tools.icons.hashing import perceptual_hash
from tools.icons.pack import attribution, pack, pack_hashes
from tools.icons.render import nearly_blank, quantise, render_all
from tools.icons.source import Drawing, IconSet, brand_names, fetch, read_sets
from tools.icons.split import Classes, choose_families, corpus_rows, make_classes

ASSETS = ROOT / "imbalance_vlm" / "assets" / "icons_lt"


def name_drawings(sets: list[tuple[IconSet, list[Drawing]]], brands: frozenset[str]) -> list[str]:
    """The concept of every drawing, in order; "" where its name says that it shows a brand or a variant."""
    names = []
    for icon_set, drawings in sets:
        concepts = naming.set_names(icon_set, [drawing.name for drawing in drawings])
        names += [concepts.get(drawing.name, "") for drawing in drawings]
    spelling = naming.merge_spellings(Counter(concept for concept in names if concept))
    merged = [spelling.get(concept, "") for concept in names]
    return ["" if concept in brands else concept for concept in merged]


def build(package: Path, out: Path, assets: Path, processes: int) -> str:
    """Build everything; returns the report."""
    sets = read_sets(package)
    drawings = [drawing for _, of_set in sets for drawing in of_set]
    set_of = np.repeat(np.arange(len(sets)), [len(of_set) for _, of_set in sets])
    concepts = name_drawings(sets, naming.brands(brand_names(package)))
    images = quantise(render_all(drawings, processes))
    usable = np.array([bool(concept) for concept in concepts]) & ~nearly_blank(images)
    concepts = [concept if good else "" for concept, good in zip(concepts, usable, strict=True)]
    hashes = perceptual_hash(images)
    prefixes = [icon_set.prefix for icon_set, _ in sets]
    named = np.flatnonzero(usable)
    shares = fork_shares([prefixes[set_of[row]] for row in named], [concepts[row] for row in named], hashes[named])
    family = group({prefix: len(of_set) for prefix, (_, of_set) in zip(prefixes, sets, strict=True)}, shares)
    seen = [f"{a} ~ {b}: {share:.0%}" for (a, b), share in shares.items() if share >= MIN_SHARE]
    families = sorted(set(family.values()))
    family_of_set = np.array([families.index(family[prefix]) for prefix in prefixes])
    family_of = family_of_set[set_of]
    vocabulary = sorted({concept for concept in concepts if naming.is_concept(concept)})
    label = {concept: row for row, concept in enumerate(vocabulary)}
    concept_of = np.array([label.get(concept, -1) for concept in concepts])

    downstream = np.isin(family_of, sorted(choose_families(family_of[usable], concept_of[usable])))
    classes = make_classes(vocabulary, concept_of, family_of, hashes, images, downstream & usable)
    corpus = corpus_rows(np.flatnonzero(~downstream & usable), hashes, classes.rows["test"])

    pack(assets, images, classes)
    pack_hashes(assets, hashes[corpus])
    shipped = Counter(drawings[row].set for rows in classes.rows.values() for row in rows)
    used = Counter(drawings[row].set for row in corpus)
    (assets / "ATTRIBUTION").write_text(attribution([s for s, _ in sets], shipped, used), encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "pretrain_images.npy", images[corpus])
    lines = (
        f"{at}\t{drawings[row].set}\t{families[family_of[row]]}\t{drawings[row].name}\t{concepts[row]}"
        for at, row in enumerate(corpus)
    )
    (out / "pretrain.tsv").write_text("row\tset\tfamily\ticon\tcaption\n" + "\n".join(lines) + "\n", encoding="utf-8")
    report = _report(classes, family, seen, downstream, family_of, [concepts[row] for row in corpus])
    (out / "report.txt").write_text(report, encoding="utf-8")
    return report


def _report(
    classes: Classes,
    family: dict[str, str],
    seen: list[str],
    downstream: np.ndarray,
    family_of: np.ndarray,
    captions: list[str],
) -> str:
    train = np.bincount(classes.labels["train"])
    known = set(captions)
    groups = {"many": train > 100, "medium": (train >= 20) & (train <= 100), "few": train < 20}
    members: dict[str, list[str]] = {}
    for prefix, name in sorted(family.items()):
        members.setdefault(name, []).append(prefix)
    chosen = len(np.unique(family_of[downstream]))
    share = np.mean(~downstream)
    lines = [
        f"drawings: {len(family_of)}, families: {len(members)}, of which {chosen} downstream",
        f"corpus: {len(captions)} pairs, {len(known)} captions, from families with {share:.1%} of the drawings",
        f"classes: {len(train)}, known to the corpus: {sum(name in known for name in classes.names)}",
        f"images: {', '.join(f'{split} {len(rows)}' for split, rows in classes.rows.items())}",
        f"groups: {', '.join(f'{name} {int(mask.sum())}' for name, mask in groups.items())}",
        f"train images per class: {train.max()} to {train.min()}, max/min {train.max() / train.min():.1f}",
        "linked by image:",
        *(f"  {line}" for line in seen),
        "families of several sets:",
        *(f"  {name}: {' '.join(prefixes)}" for name, prefixes in members.items() if len(prefixes) > 1),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="an unpacked @iconify/json; downloaded with npm by default")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "icons", help="where npm stores the package")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "icons", help="for the corpus and the report")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="for the dataset")
    parser.add_argument("--processes", type=int, default=2, help="rendering processes")
    options = parser.parse_args()
    package = options.source or fetch(options.work)
    print(build(package, options.out, options.assets, options.processes), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
