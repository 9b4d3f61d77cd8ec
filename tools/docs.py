"""Write the generated parts of README.md and docs/, and the JSON Schema of recipes.

    python tools/docs.py                       write them
    python tools/docs.py --check               exit 1 when something is stale
    python tools/docs.py --collect runs/STUDY  first keep the results of a finished study under recipes/_results/
    python tools/docs.py --notebook            first run docs/tour.ipynb and keep its outputs

A generated part is the text between `<!-- begin: NAME ... -->` and `<!-- end: NAME -->`. Tables come from kept results,
the catalogue and the recipe reference from the registries, the first pages of the site from README.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from imbalance_vlm import create_dataset
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.pretraining import samples_seen
from imbalance_vlm.files import write_json, write_text
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.recipe.json_schema import json_schema
from imbalance_vlm.recipe.load import load
from imbalance_vlm.recipe.reference import reference
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.results.averages import with_averages
from imbalance_vlm.results.comparison import compare
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.results.tables import markdown, select, table

PARITY = ROOT / "tests" / "parity"
KEPT = ROOT / "recipes" / "_results"
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
SCHEMA = ROOT / "docs" / "recipe.schema.json"
_FIELDS = (
    "schema",
    "recipe_hash",
    "config",
    "seed",
    "identity",
    "scores",
    "columns",
    "chosen",
    "images",
    "paper",
    "cost",
    "environment",
)
_KINDS = {
    "losses": "Losses",
    "heads": "Heads",
    "samplers": "Samplers",
    "regularizers": "Regularizers",
    "second_stages": "Second stages",
    "post_hoc": "Post-hoc corrections",
    "tunings": "Tunings",
    "prompts": "Prompt methods (`tuning: {name: prompt, method: ...}`)",
    "peft": "Parameter-efficient methods (`tuning: {name: peft, method: ...}`)",
    "gradients": "Gradient transforms",
    "encoders": "Encoders",
    "datasets": "Datasets",
    "optimizers": "Optimizers",
    "schedules": "Schedules",
    "evaluators": "Evaluators",
}


def collect(folder: Path) -> None:
    """Keep what the tables need from every run of a study, and its plot. Values per class are not kept."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    records = []
    for run in study["runs"]:
        record = json.loads((folder / run / "result.json").read_text(encoding="utf-8"))
        groups = record["classes"]["groups"]
        identity = record["identity"] | {"pretrained": without_folder(record["identity"]["pretrained"])}
        records.append(
            {key: record[key] for key in _FIELDS if key in record} | {"identity": identity, "groups": groups}
        )
    write_json(KEPT / f"{study['name']}.json", packed(records))
    if (folder / "plot.png").is_file():
        shutil.copyfile(folder / "plot.png", KEPT / f"{study['name']}.png")


def without_folder(pretrained: str | None) -> str | None:
    """The weights without the folder of the machine that they were on.

    >>> without_folder("/home/me/weights/lite0.safetensors"), without_folder("laion2b_s34b_b88k")
    ('lite0.safetensors', 'laion2b_s34b_b88k')
    """
    return Path(pretrained).name if pretrained and Path(pretrained).is_absolute() else pretrained


SHARED = {"environment": "environments", "columns": "columns_of_runs"}
"""Fields that most runs of a study have in common, and the key under which their values are kept once."""


def packed(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Records with shared values once and scores rounded to 6 decimal places: a study has hundreds of runs."""
    values: dict[str, list[Any]] = {key: [] for key in SHARED.values()}
    runs = []
    for record in records:
        scores = {key: None if value is None else round(value, 6) for key, value in record["scores"].items()}
        places = {}
        for field, key in SHARED.items():
            if field in record:
                if record[field] not in values[key]:
                    values[key].append(record[field])
                places[field] = values[key].index(record[field])
        runs.append(record | {"scores": scores} | places)
    return values | {"runs": runs}


def unpacked(study: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a kept study.

    >>> record = {"scores": {"overall": 50.0}, "environment": {"python": "3.11"}, "columns": []}
    >>> unpacked(packed([record, record])) == [record, record]
    True
    """
    shared = {field: study[key] for field, key in SHARED.items() if key in study}
    return [
        run | {field: values[run[field]] for field, values in shared.items() if field in run} for run in study["runs"]
    ]


def study_frame(name: str) -> pd.DataFrame:
    """One row per configuration of a kept study, with all columns."""
    study = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    results = [RunResult(KEPT, with_samples(record)) for record in unpacked(study)]
    frame = table(results)
    settings = table_settings(name)
    if settings.get("baseline"):
        frame = compare(frame, results, settings["baseline"], settings.get("score") or "overall")
    frame["recipe"] = frame["recipe"].str.removeprefix(f"{name}/")
    if settings.get("average"):
        frame = with_averages(frame, plan(ROOT / "recipes" / f"{name}.yaml").coordinates(), settings["average"])
    return frame


def with_samples(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a kept run with the samples of its encoder's pre-training, which older runs did not record."""
    identity = record["identity"]
    samples = {"samples_seen": samples_seen(identity["encoder"], identity["pretrained"])}
    return record | {"identity": samples | identity}


def table_settings(name: str) -> dict[str, Any]:
    """The `table` section of a study's recipe."""
    settings: dict[str, Any] = load(ROOT / "recipes" / f"{name}.yaml").tree.get("table", {})
    return settings


def study_table(name: str) -> str:
    """The table of a kept study, with the columns that its recipe names."""
    settings = table_settings(name)
    return markdown(select(study_frame(name), settings.get("columns"), settings.get("sort")))


_REPAIRS = ("cross-entropy + ",)
_TEXT = ("text cosine", "zero-shot")


def which_one(name: str) -> str:
    """The rows of a balancing study that answer which method to choose."""
    frame = study_frame(name).sort_values("overall", ascending=False)
    rarest = "few" if frame["few"].notna().any() else "medium"  # ten classes of photographs have no few
    repairs = frame[frame["recipe"].str.startswith(_REPAIRS)]
    without_text = frame[~frame["recipe"].str.startswith(_TEXT)]
    picks = {
        "the highest overall accuracy": frame.iloc[0],
        f"the highest accuracy on {rarest}": frame.sort_values(rarest).iloc[-1],
        "the highest overall without a text tower": without_text.iloc[0],
        "to correct a classifier that is already trained": repairs.iloc[0],
        "no balancing, to compare with": frame[frame["recipe"] == "linear + cross-entropy"].iloc[0],
    }
    rows = [{"you want": want} | {"use": row["recipe"]} | _scores(row) for want, row in picks.items()]
    baseline = table_settings(name)["baseline"]
    compared = frame[frame["recipe"] != baseline]
    tested = compared[compared["p_value"].notna()]
    better = tested[(tested["p_value"] < 0.05) & (tested["difference"] > 0)]
    worse = tested[(tested["p_value"] < 0.05) & (tested["difference"] < 0)]
    same = len(compared) - len(better) - len(worse)
    test = (
        f"Of the {len(compared)} other rows, {len(better)} are better than `{baseline}` overall, {len(worse)} worse "
        f"and {same} do not differ significantly (paired t-test over the seeds, Holm's correction, 5 %)."
    )
    text = textwrap.fill(f"{test} {summary(frame, rarest)}", 120, break_on_hyphens=False)
    return f"{markdown(pd.DataFrame(rows))}\n{text}"


_ONCE = (
    "linear + balanced softmax",
    "linear + lade",
    "linear + class-balanced sampling",
    "linear + class-aware sampling",
    "cross-entropy + shift to uniform",
    "cross-entropy + post-hoc adjustment",
)
"""Rows that remove the training prior once: in the loss, by the sampler, or after training."""


def summary(frame: pd.DataFrame, rarest: str) -> str:
    """The rows in a few sentences, whose numbers come from the rows."""
    rows = frame.set_index("recipe")
    once, plain = rows.loc[list(_ONCE)], rows.loc["linear + cross-entropy"]
    twice, single = rows.loc["linear + sqrt sampling + balanced softmax + smoothing"], rows.loc[_ONCE[0]]
    adapter, both = rows.loc["adapter + balanced softmax"], rows.loc["adapter + balanced softmax + prototype contrast"]
    start, random = rows.loc["class-mean cosine + balanced softmax"], rows.loc["cosine + balanced softmax"]
    sade = ""
    if "experts + sade + aggregation" in rows.index:
        before, after = rows["overall"][["experts + sade", "experts + sade + aggregation"]]
        sade = f"The test-time aggregation of SADE changes its experts from {before:.1f} to {after:.1f}. "
    low, high = str(once["overall"].idxmin()), str(once["overall"].idxmax())
    return (
        f"Removing the training prior once, in the loss, by the sampler or after training, gives between "
        f"{once['overall'][low]:.1f} (`{low}`) and {once['overall'][high]:.1f} (`{high}`) overall; cross-entropy gives "
        f"{plain['overall']:.1f}, and {plain[rarest]:.1f} on {rarest}. Removing it twice (sqrt sampling and balanced "
        f"softmax) costs {single['many'] - twice['many']:.1f} points on many for {twice[rarest] - single[rarest]:+.1f} "
        f"on {rarest}. An adapter before a cosine classifier gives {adapter['overall']:.1f} ({start['overall']:.1f} "
        f"without it), and {both['overall']:.1f} with prototype contrast; starting from class means adds "
        f"{start['overall'] - random['overall']:+.1f}. {sade}The methods whose published settings are for training a "
        "whole backbone (vs, equalization, fixed prototypes) should not be judged by their rows: here the features "
        "are frozen, and nothing was tuned."
    )


def _scores(row: pd.Series) -> dict[str, str]:
    """Means and standard deviations as text, "-" for a group without classes."""
    scores = ("overall", "many", "medium", "few")
    return {s: "-" if pd.isna(row[s]) else f"{row[s]:.1f} ± {row[f'{s}_std']:.1f}" for s in scores}


def components() -> str:
    """Every registered component, by kind."""
    lines = []
    for kind, title in _KINDS.items():
        if not catalogue.REGISTRIES[kind].names():
            continue
        lines += [f"## {title}", "", "| name | what it does | source |", "|---|---|---|"]
        for entry in catalogue.REGISTRIES[kind]:
            status = f" *({entry.status}, not verified against the authors' code)*" if entry.status else ""
            lines.append(f"| `{entry.name}` | {entry.summary}{status} | {entry.paper or '-'} |")
        lines.append("")
    return "\n".join(lines)


def capabilities() -> str:
    """What components can need and provide."""
    rows = [f"| `{name}` | {capability.description} |" for name, capability in catalogue.CAPABILITIES.items()]
    return "\n".join(["| capability | what has it |", "|---|---|", *rows])


def icons_lt_facts() -> str:
    """The size of Icons-LT, counted in the shipped files."""
    data = create_dataset("icons_lt")
    tail = LongTail(data.counts, data.class_names)
    sizes = {name: len(split) for name, split in data.splits.items()}
    groups = {name: len(members) for name, members in tail.groups.items()}
    return (
        f"{data.num_classes} classes, {sizes['train']:,} training, {sizes['val']:,} validation and "
        f"{sizes['test']:,} test images of 32 x 32 pixels;\n"
        f"{groups['many']} classes are many, {groups['medium']} medium, {groups['few']} few; the largest has "
        f"{tail.counts.max()} training images, the smallest {tail.counts.min()} ({tail.imbalance:.1f} : 1)."
    )


def icons_sets_table() -> str:
    """The embedded topical sets: their sizes, counted in the shipped files, and the kept zero-shot accuracies."""
    accuracy = study_frame("studies/icons_sets").set_index("recipe")["overall"]
    rows = []
    for name in [
        name for name in catalogue.DATASETS.names() if name.startswith("icons_") and not name.startswith("icons_lt")
    ]:
        data = create_dataset(name)
        tail = LongTail(data.counts, data.class_names)
        rows.append(
            {
                "dataset": name,
                "sentence": data.templates[0],
                "flips": "yes" if data.flips else "no",
                "classes": data.num_classes,
                **{split: len(data.splits[split]) for split in ("train", "val", "test")},
                "max / min": f"{tail.counts.max()} / {tail.counts.min()}",
                "many / medium / few": " / ".join(str(len(members)) for members in tail.groups.values()),
                "zero-shot": f"{accuracy[f'own sentences/{name}']:.1f}",
                "an icon of {}": f"{accuracy[f'plain sentence/{name}']:.1f}",
            }
        )
    return markdown(pd.DataFrame(rows))


def icons_styles_table() -> str:
    """Icons-LT and its styles: their sizes, counted in the shipped files, and the kept zero-shot accuracies."""
    accuracy = study_frame("studies/icons_sets").set_index("recipe")["overall"]
    rows = []
    for name in [name for name in catalogue.DATASETS.names() if name.startswith("icons_lt")]:
        data = create_dataset(name)
        rows.append(
            {
                "dataset": name,
                "drawn in": "all styles" if name == "icons_lt" else _style_of(name),
                "classes": data.num_classes,
                "test": len(data.splits["test"]),
                "zero-shot": f"{accuracy[f'own sentences/{name}']:.1f}",
            }
        )
    return markdown(pd.DataFrame(rows))


def _style_of(name: str) -> str:
    return catalogue.DATASETS.get(name).summary.split("drawn in ")[1].split(",")[0]


def bench_output(name: str) -> str:
    """The kept output of a benchmark command."""
    return f"```\n{(KEPT / f'{name}.txt').read_text(encoding='utf-8').strip()}\n```"


def parity() -> str:
    """What was compared with released code, from the kept records and the measured differences."""
    measured = json.loads((PARITY / "measured.json").read_text(encoding="utf-8"))
    rows, notes, changes = [], [], []
    for path in sorted((PARITY / "records").glob("*.json")):
        record, name = json.loads(path.read_text(encoding="utf-8")), path.stem
        repository, commit = record["repository"], record["commit"]
        reasons = {case: run["differs"] for case, run in record["runs"].items() if "differs" in run}
        notes += [f"- `{name}`, {case} ({measured[name][case]:.0e}): {reason}." for case, reason in reasons.items()]
        largest = max(difference for case, difference in measured[name].items() if case not in reasons)
        cases = "; ".join(f"*{case}*" if case in reasons else case for case in record["runs"])
        place = f"[{repository.removeprefix('https://github.com/')}]({repository}/tree/{commit}) `{commit[:7]}`"
        rows.append(f"| `{name}` | {place} | `{record['file']}` | {cases} | {largest:.0e} |")
        changes.append(f"- `{name}`: {record['changes']}.")
    head = ["| record | repository, commit | file | cases | largest difference |", "|---|---|---|---|---:|"]
    differing = ["", "Cases in italics differ on purpose, which the test asserts:", "", *notes] if notes else []
    return "\n".join([*head, *rows, *differing, "", "Changed in the released code to run it:", "", *changes])


def readme_section(name: str) -> str:
    """A section of README.md for a page of docs/; "home" is everything before the section on your own photographs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if name == "home":
        part = text.split("\n## Your own photographs")[0]
    else:
        part = next(
            section
            for section in re.split(r"\n(?=## )", text)
            if re.sub(r"\W+", "_", section.partition("\n")[0].lower()).strip("_") == name
        )
    part = re.sub(r"<!--.*?-->\n?", "", part)
    return re.sub(r"\]\(docs/", "](", part)


PARTS: dict[str, Callable[[], str]] = {
    "capabilities": capabilities,
    "catalogue": components,
    "icons_lt": icons_lt_facts,
    "icons_sets": icons_sets_table,
    "icons_styles": icons_styles_table,
    "which_one": lambda: which_one("studies/balancing"),
    "which_one_photos": lambda: which_one("studies/balancing_photos"),
    "parity": parity,
    "recipe": reference,
}
FAMILIES: dict[str, Callable[[str], str]] = {
    "bench/": bench_output,
    "readme/": lambda name: readme_section(name.removeprefix("readme/")),
    "": study_table,
}


def part(name: str) -> str:
    """The content of a generated part; the name of a family's part starts with its prefix."""
    if name in PARTS:
        return PARTS[name]()
    return next(write for prefix, write in FAMILIES.items() if name.startswith(prefix))(name)


def generated(text: str) -> str:
    """A document with its generated parts written again."""
    head, tail = r"<!-- begin: (?P<name>[\w/]+) \(written by tools/docs[^>]*-->", r"<!-- end: (?P=name) -->"
    pattern = re.compile(f"(?P<head>{head})\n.*?(?P<tail>{tail})", flags=re.DOTALL)
    return pattern.sub(lambda match: f"{match['head']}\n{part(match['name']).rstrip()}\n{match['tail']}", text)


def schema_text() -> str:
    """The JSON Schema of recipes as the text of its file."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def executed(path: Path) -> Any:
    """A notebook with the outputs of running it from top to bottom; progress on stderr is left out.

    Raises:
        CellExecutionError: a cell that fails.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False).execute()
    for cell in notebook.cells:
        cell.get("outputs", [])[:] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",) if key in notebook.metadata}
    return notebook


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something is stale")
    parser.add_argument(
        "--collect", type=Path, action="append", default=[], metavar="FOLDER", help="keep the results of this study"
    )
    parser.add_argument("--notebook", action="store_true", help="run docs/tour.ipynb and keep its outputs")
    arguments = parser.parse_args()
    if arguments.notebook:
        import nbformat

        write_text(NOTEBOOK, nbformat.writes(executed(NOTEBOOK), indent=1) + "\n")
    for folder in arguments.collect:
        collect(folder)
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), SCHEMA):
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        new = schema_text() if path == SCHEMA else generated(old)
        if new == old:
            continue
        stale.append(path.relative_to(ROOT))
        if not arguments.check:
            write_text(path, new)
    if arguments.check and stale:
        print(f"stale: {', '.join(map(str, stale))}; run python tools/docs.py", file=sys.stderr)
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
