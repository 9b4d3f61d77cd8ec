"""`imbalance-vlm table` and `predict`: the commands on finished runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from imbalance_vlm.cli.common import command, path


def add(commands: Any) -> None:
    parser = command(commands, "table", table, "make a table of finished runs")
    parser.add_argument("places", nargs="*", type=path, default=[Path("runs")], help="run folders, or folders of them")
    parser.add_argument("--format", default="markdown", help="markdown (default), latex, csv; parquet needs --out")
    parser.add_argument("--columns", help="names of columns, separated by commas; all by default")
    parser.add_argument("--sort", help="column to sort by, best first")
    parser.add_argument("--out", type=path, help="write to this file; its suffix is .md, .tex, .csv or .parquet")

    parser = command(commands, "predict", predict, "classify new images with a finished run")
    parser.add_argument("run", type=path, help="the folder of a finished run (with result.json)")
    parser.add_argument("images", nargs="+", type=path, help="image files, or folders of them")
    parser.add_argument("--out", type=path, help="write a CSV file instead of printing it")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    parser.add_argument(
        "--on-error",
        choices=["raise", "skip"],
        default="raise",
        help="images that cannot be read: list them and stop (raise, the default), or leave them out (skip)",
    )


def table(options: argparse.Namespace) -> None:
    from imbalance_vlm.results.result import find_results
    from imbalance_vlm.results.tables import columns_of, format_table, save_table, select
    from imbalance_vlm.results.tables import table as make_table

    results = find_results(options.places)
    columns = columns_of(results)
    frame = select(make_table(results), options.columns.split(",") if options.columns else None, options.sort, columns)
    if options.out:
        save_table(frame, options.out, columns)
    else:
        print(format_table(frame, options.format, columns), end="")


def predict(options: argparse.Namespace) -> None:
    from imbalance_vlm.escapes import csv_cell
    from imbalance_vlm.files import write_text
    from imbalance_vlm.runs.classifier import predict_images

    rows = predict_images(options.run, options.images, options.device, options.on_error).map(csv_cell)
    content = rows.to_csv(index=False, float_format="%.4f")
    if options.out:
        write_text(options.out, content)
    else:
        print(content, end="")
