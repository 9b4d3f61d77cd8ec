"""Build the embedded datasets and mini-clip's pre-training corpus from the npm package `@iconify/json`.

    python tools/build_icons.py --work build/icons                 download with npm, then build
    python tools/build_icons.py --source PACKAGE --out build/icons  from an unpacked package

Takes about five minutes on 2 cores, and the same input gives the same bytes. It writes

- Icons-LT, the topical sets and the styles into imbalance_vlm/assets, a folder each (format: tools/icons/pack.py), and
- the corpus into --out, not shipped: pretrain_images.npy, uint8 (N, 32, 32, 3), and pretrain.tsv (row, set, family,
  icon name, caption), shuffled once, so that its first N/27, N/9 and N/3 rows are the smaller corpora.

Steps: read the usable sets (tools/icons/source.py) -> concepts from names (names.py) -> render and round to 16 levels
(render.py) -> perceptual hashes (hashing.py) -> families of sets (families.py), all kept together (pool.py) -> families
for the classes and families for pre-training, classes, splits, corpus (split.py) -> topical sets (topics.py) and styles
(styles.py) -> files (pack.py). `report.txt` in --out has the numbers of each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.icons.pack import attribution, pack, pack_hashes
from tools.icons.pool import Pool, read_pool
from tools.icons.source import fetch
from tools.icons.split import Classes, corpus_rows, make_classes
from tools.icons.styles import make_styles
from tools.icons.topics import make_topics, read_topics

ASSETS = ROOT / "imbalance_vlm" / "assets"


def build(package: Path, out: Path, assets: Path, processes: int) -> str:
    """Build everything; returns the report."""
    pool = read_pool(package, processes)
    classes = make_classes(
        pool.vocabulary, pool.concept_of, pool.family_of, pool.hashes, pool.images, pool.downstream & pool.usable
    )
    corpus = corpus_rows(np.flatnonzero(~pool.downstream & pool.usable), pool.hashes, classes.rows["test"])
    folder = assets / "icons_lt"
    pack(folder, pool.images, classes)
    pack_hashes(folder, pool.hashes[corpus])
    shipped = np.concatenate(list(classes.rows.values()))
    text = attribution("Icons-LT", pool.sets, pool.counts_of_sets(shipped), pool.counts_of_sets(corpus))
    (folder / "ATTRIBUTION").write_text(text, encoding="utf-8")
    write_corpus(out, pool, corpus)
    topics = {topic.name: topic for topic in read_topics()}
    made = make_topics(list(topics.values()), pool) | make_styles(pool, classes)
    trained = dict(zip(classes.names, np.bincount(classes.labels["train"]).tolist(), strict=True))
    for name, part in made.items():
        if name in topics:
            described = {"templates": [topics[name].sentence], "flips": topics[name].flips}
        else:
            described = {"test_only": True, "group_counts": [trained[class_name] for class_name in part.names]}
        write_set(assets / name, pool, part, described)
    report = _report(classes, pool, [pool.concepts[row] for row in corpus], made)
    (out / "report.txt").write_text(report, encoding="utf-8")
    return report


def write_corpus(out: Path, pool: Pool, corpus: np.ndarray) -> None:
    """Write the images and the captions of the corpus, in its order."""
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "pretrain_images.npy", pool.images[corpus])
    lines = (
        f"{at}\t{pool.drawings[row].set}\t{pool.families[pool.family_of[row]]}\t{pool.drawings[row].name}"
        f"\t{pool.concepts[row]}"
        for at, row in enumerate(corpus)
    )
    (out / "pretrain.tsv").write_text("row\tset\tfamily\ticon\tcaption\n" + "\n".join(lines) + "\n", encoding="utf-8")


def write_set(folder: Path, pool: Pool, classes: Classes, described: Mapping[str, Any]) -> None:
    """Write a dataset of drawings of the pool into its folder."""
    pack(folder, pool.images, classes, **described)
    text = attribution(folder.name, pool.sets, pool.counts_of_sets(np.concatenate(list(classes.rows.values()))))
    (folder / "ATTRIBUTION").write_text(text, encoding="utf-8")


def _report(classes: Classes, pool: Pool, captions: list[str], made: Mapping[str, Classes]) -> str:
    known = set(captions)
    members: dict[str, list[str]] = {}
    for prefix, name in sorted(pool.family.items()):
        members.setdefault(name, []).append(prefix)
    chosen = len(np.unique(pool.family_of[pool.downstream]))
    share = np.mean(~pool.downstream)
    lines = [
        f"drawings: {len(pool.family_of)}, families: {len(members)}, of which {chosen} downstream",
        f"corpus: {len(captions)} pairs, {len(known)} captions, from families with {share:.1%} of the drawings",
        *(f"{name}: {_facts(part, known)}" for name, part in {"icons_lt": classes, **made}.items()),
        "linked by image:",
        *(f"  {line}" for line in pool.links),
        "families of several sets:",
        *(f"  {name}: {' '.join(prefixes)}" for name, prefixes in members.items() if len(prefixes) > 1),
    ]
    return "\n".join(lines) + "\n"


def _facts(classes: Classes, known: set[str]) -> str:
    split = "train" if "train" in classes.labels else "test"
    train = np.bincount(classes.labels[split])
    groups = {"many": train > 100, "medium": (train >= 20) & (train <= 100), "few": train < 20}
    return (
        f"{len(train)} classes, {sum(name in known for name in classes.names)} of them captions of the corpus; "
        f"images: {', '.join(f'{split} {len(rows)}' for split, rows in classes.rows.items())}; "
        f"{', '.join(f'{name} {int(mask.sum())}' for name, mask in groups.items())}; "
        f"{split} images per class: {train.max()} to {train.min()}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="an unpacked @iconify/json; downloaded with npm by default")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "icons", help="where npm stores the package")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "icons", help="for the corpus and the report")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="for the datasets, a folder each")
    parser.add_argument("--processes", type=int, default=2, help="rendering processes")
    options = parser.parse_args()
    package = options.source or fetch(options.work)
    print(build(package, options.out, options.assets, options.processes), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
