"""The command line. Commands import what they need when they run: `--help` and `ls` answer at once."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imbalance_vlm import __version__, launcher
from imbalance_vlm.components import catalogue
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.results.columns import MAIN

EXIT_FINDINGS = 1
EXIT_BAD_INPUT = 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="imbalance-vlm", description="Long-tailed recognition with vision-language models: recipe in, table out."
    )
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", metavar="command", required=True)

    def command(name: str, do: Callable[[argparse.Namespace], int | None], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(do=do)
        return sub

    add_run_arguments(command("run", do_run, "run a recipe or a study and print its table"))

    sub = command("ls", do_ls, "list recipes and components")
    sub.add_argument("kind", nargs="?", help=f"recipes, {', '.join(catalogue.REGISTRIES)}; all of them by default")

    sub = command("show", do_show, "print a recipe with every default filled in, or a component with its settings")
    sub.add_argument("name", help="a recipe, or the name of a component")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value")

    sub = command("validate", do_validate, "check recipes without running them")
    sub.add_argument("recipes", nargs="+", metavar="recipe")

    sub = command("table", do_table, "make a table of finished runs")
    sub.add_argument("places", nargs="*", type=Path, default=[Path("runs")], help="run folders, or folders above them")
    sub.add_argument("--format", default="markdown", help="markdown (default), latex, csv; parquet needs --out")
    sub.add_argument("--columns", help="comma-separated; all by default")
    sub.add_argument("--sort", help="column to sort by, best first")
    sub.add_argument("--out", type=Path, help="write to this file; the suffix .md, .tex, .csv or .parquet says how")

    sub = command("predict", do_predict, "apply a finished run to new images")
    sub.add_argument("run", type=Path, help="the folder of a finished run (the one with result.json)")
    sub.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    sub.add_argument("--out", type=Path, help="write a CSV file here instead of printing it")
    sub.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")

    sub = command("data", do_data, "check a dataset before it is trained on, or look at its head and tail")
    add_data_arguments(sub.add_subparsers(dest="what", required=True, metavar="WHAT"))

    sub = command("cache", do_cache, "list or prune the cache of features and of smaller images")
    sub.add_argument("action", choices=["ls", "prune", "path"])
    sub.add_argument(
        "--max-gb", type=float, default=0.0, help="prune: keep at most this many GB (default 0: remove all)"
    )
    sub.add_argument("--older-than-days", type=float, help="prune: remove only what was unused for this long")

    sub = command("bench", do_bench, "measure what this machine does")
    add_benchmarks(sub.add_subparsers(dest="what", required=True, metavar="WHAT"))
    return top


def add_data_arguments(what: Any) -> None:
    source = "a recipe, a folder of class folders, a table (.csv, .tsv, .parquet) or an archive (.zip, .tar, .tar.gz)"
    verify = what.add_parser(
        "verify",
        help="counts, broken and repeated images, leakage, and the published numbers",
        description="Check every image of a dataset, and the dataset as a whole. Nothing is written beside the data. "
        "Exit status: 0 when nothing is wrong, 1 when there are findings, 2 for bad input.",
    )
    show = what.add_parser(
        "show",
        help="a contact sheet of the largest and the smallest classes",
        description="Draw a contact sheet of the largest and the smallest classes, a row each.",
    )
    for sub in (verify, show):
        sub.add_argument("source", help=source)
        sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="of the recipe, or of a path's reader")
    verify.add_argument("--out", type=Path, help="write report.md, report.json, findings.csv, ... to this folder")
    verify.add_argument("--embeddings", action="store_true", help="look for wrong labels with the recipe's encoder")
    verify.add_argument("--neighbours", type=int, default=10, help="that must agree on another class (default 10)")
    verify.add_argument("--near", type=int, default=12, help="of 128 bits that near duplicates differ in; -1: off")
    verify.add_argument("--ignore", nargs="+", default=[], metavar="KIND", help="kinds of findings to leave out")
    verify.add_argument("--workers", type=int, help="processes that read images; one a core by default")
    verify.add_argument("--device", default="auto", help="of the encoder: auto (default), cpu, cuda, ...")
    show.add_argument("--classes", type=int, default=5, help="classes from each end (default 5)")
    show.add_argument("--images", type=int, default=8, help="images of each class (default 8)")
    show.add_argument("--out", type=Path, default=Path("contact_sheet.png"), help="default: contact_sheet.png")


def add_benchmarks(what: Any) -> None:
    sub = what.add_parser("features", help="a linear probe on cached features, and re-encoding at every epoch")
    sub.add_argument("--epochs", type=int, default=50, help="epochs to compare (default 50)")
    sub.add_argument("--live-epochs", type=int, default=1, help="epochs of re-encoding that are really run (default 1)")
    sub = what.add_parser("losses", help="time and memory of every loss beside cross-entropy")
    sub.add_argument("--batch", type=int, default=512, help="rows of the logits (default 512)")
    sub.add_argument("--classes", type=int, default=8142, help="columns of the logits (default 8142)")
    sub.add_argument("--repeats", type=int, default=5, help="measurements of each (default 5)")
    sub.add_argument("--names", nargs="+", help="only these losses")
    sub = what.add_parser("probe", help="a linear probe at the size of iNaturalist 2018, on random cached features")
    sub.add_argument("--images", type=int, default=437_513, help="training vectors (default 437513)")
    sub.add_argument("--classes", type=int, default=8_142, help="default 8142")
    sub.add_argument("--width", type=int, default=768, help="of a vector (default 768)")
    sub.add_argument("--test-images", type=int, default=24_426, help="vectors to test on (default 24426)")
    sub.add_argument("--batch", type=int, default=512, help="vectors to a step (default 512)")
    sub.add_argument("--epochs", type=int, default=1, help="passes over the training set (default 1)")
    sub.add_argument("--loss", default="balanced_softmax", help="default: balanced_softmax")
    sub = what.add_parser("text", help="prompt tuning's text tower: the plain way, and each exact saving")
    sub.add_argument("--classes", type=int, nargs="+", default=[100, 1000, 8142], help="default: 100 1000 8142")
    sub.add_argument("--contexts", type=int, nargs="+", default=[4, 16], help="learned tokens (default: 4 16)")
    sub.add_argument("--names", type=Path, help="a file with a class name a line; made up if left out")
    sub.add_argument("--limit-gb", type=float, default=16.0, help="skip what needs more memory (default 16)")
    for name, said in (
        ("data", "loading, compute, and both together"),
        ("train", "a tuned tower against the plain way"),
    ):
        sub = what.add_parser(name, help=f"{said}, in images a second")
        sub.add_argument("--images", type=int, default=64, help="generated photographs (default 64)")
        sub.add_argument("--batch", type=int, default=16, help="images to a step (default 16)")
        sub.add_argument("--model", default="ViT-B-16", help="an open_clip architecture, with random weights")
        sub.add_argument("--device", help="cpu, cuda, ...; a GPU where there is one by default")


def add_run_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", help="a YAML file, or the name of a packaged recipe (`imbalance-vlm ls recipes`)")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="such as training.epochs=5")
    sub.add_argument("--runs", default="runs", help="folder for the run folders (default: runs)")
    sub.add_argument("--force", action="store_true", help="run again what is finished")
    sub.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    sub.add_argument("--jobs", type=int, default=1, help="runs of a study at a time (default 1)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 1 when data have findings, 2 for bad input, 130 after Ctrl-C."""
    given = parse(arguments)
    try:
        return given.do(given) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stderr.close()
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with overrides allowed behind options too (argparse alone wants them in one piece)."""
    top = parser()
    given, rest = top.parse_known_args(arguments)
    strays = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest and (strays or not hasattr(given, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(strays or rest)}")
    if rest:
        given.overrides = [*given.overrides, *rest]
    return given


def do_run(given: argparse.Namespace) -> None:
    from imbalance_vlm.progress import bar, note

    note(f"{given.recipe}: loading ...")
    with bar(2, "load", "step") as progress:  # seconds of imports: show that something happens
        from imbalance_vlm.results.result import StudyResult
        from imbalance_vlm.results.tables import markdown, select

        progress.update()
        from imbalance_vlm.runner import run

        progress.update()

    how: dict[str, Any] = {"runs": given.runs, "force": given.force, "device": given.device, "jobs": given.jobs}
    result = run(given.recipe, given.overrides, **how)
    if launcher.rank() != 0:  # of several processes, the first speaks
        return
    shown = result.table
    if not isinstance(result, StudyResult):
        shown = select(shown, ["recipe", "dataset", "encoder", "tuning", "head", "balancing", *MAIN])
    print(markdown(shown), end="")
    if isinstance(result, StudyResult) and (result.path / "plot.png").is_file():
        note(f"plot: {result.path / 'plot.png'}")
    note(f"results: {result.path}")


def do_ls(given: argparse.Namespace) -> None:
    from imbalance_vlm.recipe.load import find_recipe, list_recipes, read_yaml

    catalogue.load_plugins()
    kinds = ["recipes", *catalogue.REGISTRIES]
    if given.kind is not None and given.kind not in kinds:
        raise InputError(f"unknown kind {given.kind!r}.{did_you_mean(given.kind, kinds)} Available: {', '.join(kinds)}")
    for kind in [given.kind] if given.kind else kinds:
        print(f"{kind}:")
        if kind == "recipes":
            described = {name: read_yaml(find_recipe(name)).get("description", "") for name in list_recipes()}
            width = max(map(len, described))
            for name, description in described.items():
                print(f"  {name.ljust(width)}  {description}".rstrip())
            continue
        entries = list(catalogue.REGISTRIES[kind])
        width = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:
            status = f" [{entry.status}]" if entry.status else ""
            paper = f" ({entry.paper})" if entry.paper else ""
            print(f"  {entry.name.ljust(width)}  {entry.summary}{status}{paper}")


def do_show(given: argparse.Namespace) -> None:
    from imbalance_vlm.recipe.load import list_recipes
    from imbalance_vlm.showing import show_component, show_recipe

    catalogue.load_plugins()
    found = [
        (kind, registry.get(given.name)) for kind, registry in catalogue.REGISTRIES.items() if given.name in registry
    ]
    if found and not given.overrides:
        print(show_component(found), end="")
        return
    known = [name for registry in catalogue.REGISTRIES.values() for name in registry.names()] + list_recipes()
    if given.name not in known and not Path(given.name).is_file() and (hint := did_you_mean(given.name, known)):
        raise InputError(f"{given.name!r} is no component, no recipe file and no packaged recipe.{hint}")
    print(show_recipe(given.name, given.overrides), end="")


def do_validate(given: argparse.Namespace) -> None:
    from imbalance_vlm.recipe.study import plan

    wrong = 0
    for recipe in given.recipes:
        try:
            wanted = plan(recipe)
        except InputError as error:
            wrong += 1
            print(f"{recipe}: {error}", file=sys.stderr)
            continue
        runs = f", {len(wanted.recipes)} runs" if wanted.is_study else ""
        print(f"{recipe}: valid{runs}")
    if wrong:
        raise InputError(f"{wrong} of {len(given.recipes)} recipes are not valid")


def do_table(given: argparse.Namespace) -> None:
    from imbalance_vlm.results.result import find_results
    from imbalance_vlm.results.tables import format_table, save_table, select, table

    columns = given.columns.split(",") if given.columns else None
    frame = select(table(find_results(given.places)), columns, given.sort)
    if given.out:
        save_table(frame, given.out)
    else:
        print(format_table(frame, given.format), end="")


def do_predict(given: argparse.Namespace) -> None:
    from imbalance_vlm.files import write_text
    from imbalance_vlm.predicting import predict_images

    content = predict_images(given.run, given.images, given.device).to_csv(index=False, float_format="%.4f")
    if given.out:
        write_text(given.out, content)
    else:
        print(content, end="")


def do_data(given: argparse.Namespace) -> int:
    from imbalance_vlm.progress import note
    from imbalance_vlm.verification import report
    from imbalance_vlm.verification.collection import collect
    from imbalance_vlm.verification.contact_sheet import show
    from imbalance_vlm.verification.verify import verify

    source, overrides = given.source, given.overrides
    settings = {key: value for key, value in vars(given).items() if key not in _NO_SETTINGS}
    if given.what == "show":
        show(source, overrides, **settings)
        note(f"contact sheet: {given.out}")
        return 0
    collection = collect(source, overrides)
    out = report.outside(settings.pop("out"), collection.roots, "--out") if given.out else settings.pop("out")
    found = verify(collection, **settings)
    print(report.text(found), end="")
    if out:
        report.save(found, out)
        note(f"report: {out}")
    return 0 if found.ok else EXIT_FINDINGS


_NO_SETTINGS = ("do", "command", "what", "source", "overrides")


def do_cache(given: argparse.Namespace) -> None:
    from imbalance_vlm.encoders.cache import FeatureCache, ImageCopies

    store, copies = FeatureCache(), ImageCopies()
    if given.action == "path":
        print(store.root)
        return
    if given.action == "prune":
        age = given.older_than_days * 86400 if given.older_than_days is not None else None
        limit = int(given.max_gb * 1e9) if age is None or given.max_gb else sys.maxsize
        removed = store.prune(limit, older_than=age)
        print(f"removed {len(removed)} entries, {sum(entry.bytes for entry in removed) / 1e6:.1f} MB")
        left = max(limit - sum(entry.bytes for entry in store.entries()), 0)  # features take longer to make again
        images, freed = copies.prune(left, older_than=age)
        print(f"removed {images} smaller copies of images, {freed / 1e6:.1f} MB")
        return
    entries = list(store.entries())
    for entry in entries:
        state = "" if entry.complete else "  (unfinished)"
        what = " | ".join(str(entry.meta.get(key, "?")) for key in ("split", "encoder", "kind", "shape"))
        print(f"{entry.bytes / 1e6:9.1f} MB  {what}{state}")
    print(f"{sum(entry.bytes for entry in entries) / 1e6:9.1f} MB in {len(entries)} entries of {store.root}")
    for entry in copies.entries():
        size, count = entry.meta["size"], entry.meta["copies"]
        print(f"{entry.bytes / 1e6:9.1f} MB  {count} images with a shorter side of {size}, in {entry.folder}")


def do_bench(given: argparse.Namespace) -> None:
    settings = {key: value for key, value in vars(given).items() if key not in ("do", "what", "command")}
    if isinstance(settings.get("names"), Path):
        try:
            settings["names"] = settings["names"].read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise InputError(f"`--names` {settings['names']} cannot be read: {error.strerror}") from error
        settings["names"] = [name.strip() for name in settings["names"] if name.strip()]
    bench = importlib.import_module(f"imbalance_vlm.benchmarks.{given.what}")
    print(getattr(bench, f"bench_{given.what}")(**settings), end="")


if __name__ == "__main__":
    raise SystemExit(main())
