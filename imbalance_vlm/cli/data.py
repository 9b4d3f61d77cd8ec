"""`imbalance-vlm data verify`, `data show` and `data scenes`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from imbalance_vlm.cli.common import command, path

EXIT_FINDINGS = 1
SOURCE = (
    "a recipe, the name of a dataset, a folder of class folders, a table (.csv, .tsv, .parquet) or an archive (.zip, "
    ".tar, .tar.gz)"
)


def add(commands: Any) -> None:
    summary = "check a dataset before training, draw its largest and smallest classes, or compose scenes of its images"
    parser = commands.add_parser("data", help=summary, description=f"{summary.capitalize()}.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_verify(actions)
    _add_show(actions)
    _add_scenes(actions)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=SOURCE)
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="changes to the recipe, or settings of the reader"
    )


def _add_verify(actions: Any) -> None:
    parser = command(
        actions,
        "verify",
        verify,
        "check counts, unreadable images, duplicates, leakage and published numbers",
        "Check every image of a dataset, and the dataset as a whole. Nothing is written into its folders. "
        "Exit status: 0 without findings, 1 with findings, 2 for bad input.",
    )
    _add_source(parser)
    parser.add_argument("--out", type=path, help="write report.md, report.json, findings.csv, ... to this folder")
    parser.add_argument("--embeddings", action="store_true", help="search for wrong labels with the recipe's encoder")
    parser.add_argument(
        "--neighbours", type=int, default=10, help="nearest images that must agree on another class (default 10)"
    )
    parser.add_argument(
        "--near",
        type=int,
        default=12,
        help="most bits, of 128, in which near duplicates differ (default 12); -1 turns the search off",
    )
    parser.add_argument("--ignore", nargs="+", default=[], metavar="KIND", help="kinds of findings to leave out")
    parser.add_argument("--workers", type=int, help="processes that read images; one per core by default")
    parser.add_argument("--device", default="auto", help="device of the encoder: auto (default), cpu, cuda, ...")


def _add_show(actions: Any) -> None:
    parser = command(
        actions,
        "show",
        show,
        "draw a contact sheet of the largest and the smallest classes",
        "Draw a contact sheet of the largest and the smallest classes, one row per class.",
    )
    _add_source(parser)
    parser.add_argument("--classes", type=int, default=5, help="classes from each end (default 5)")
    parser.add_argument("--images", type=int, default=8, help="images of each class (default 8)")
    parser.add_argument(
        "--out", type=path, default=Path("contact_sheet.png"), help="PNG file to write (default contact_sheet.png)"
    )


def _add_scenes(actions: Any) -> None:
    parser = command(
        actions,
        "scenes",
        scenes,
        "compose scenes for detection and segmentation, with exact boxes and masks",
        "Compose scenes of 3 to 8 drawings of a dataset on a canvas of 128 pixels, with exact boxes and masks: "
        "images/*.png and annotations.json in the format of COCO or LVIS.",
    )
    _add_source(parser)
    parser.add_argument("--out", type=path, required=True, help="new or empty folder to write to")
    parser.add_argument("--split", default="train", help="whose images are drawn (default train)")
    parser.add_argument("--count", type=int, default=1000, help="number of scenes (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default 0)")
    parser.add_argument(
        "--tail-factor",
        type=float,
        help="how many times as often the largest class is drawn as the smallest; by default, classes are drawn as "
        "often as the dataset trains on them",
    )
    parser.add_argument("--format", choices=("coco", "lvis"), default="coco", help="of annotations.json (default coco)")


def verify(options: argparse.Namespace) -> int:
    from imbalance_vlm.progress import note
    from imbalance_vlm.verification import report
    from imbalance_vlm.verification import verify as verification
    from imbalance_vlm.verification.collection import collect

    collection = collect(options.source, options.overrides)
    out = report.outside(options.out, collection.roots, "--out") if options.out else None
    result = verification.verify(
        collection,
        embeddings=options.embeddings,
        neighbours=options.neighbours,
        near=options.near,
        ignore=options.ignore,
        workers=options.workers,
        device=options.device,
    )
    print(report.text(result), end="")
    if out:
        report.save(result, out)
        note(f"report: {out}")
    return 0 if result.ok else EXIT_FINDINGS


def show(options: argparse.Namespace) -> None:
    from imbalance_vlm.progress import note
    from imbalance_vlm.verification import contact_sheet

    contact_sheet.show(
        options.source, options.overrides, classes=options.classes, images=options.images, out=options.out
    )
    note(f"contact sheet: {options.out}")


def scenes(options: argparse.Namespace) -> None:
    from imbalance_vlm.data.scenes import Scenes, write_scenes
    from imbalance_vlm.errors import InputError
    from imbalance_vlm.progress import note
    from imbalance_vlm.verification.collection import collect
    from imbalance_vlm.verification.report import outside

    collection = collect(options.source, options.overrides)
    if collection.dataset is None:
        raise InputError(f"scenes need a dataset with classes, and {options.source} is an archive; unpack it first")
    out = outside(options.out, collection.roots, "--out")
    composed = Scenes(collection.dataset, options.split, options.count, options.seed, options.tail_factor)
    write_scenes(composed, out, options.format)
    note(f"{len(composed):,} scenes: {out}")
