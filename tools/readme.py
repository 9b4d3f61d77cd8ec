"""Write the generated parts of README.md and docs/: tables from committed results, the catalogue from the registries.

    python tools/readme.py                       write them
    python tools/readme.py --check               exit 1 when they are stale
    python tools/readme.py --collect runs/STUDY  first keep the result of a finished study under recipes/_results/

A generated part stands between `<!-- begin: NAME ... -->` and `<!-- end: NAME -->`.
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

from imbalance_vlm.components import catalogue
from imbalance_vlm.data.icons_lt import IconsLTReader
from imbalance_vlm.files import write_json, write_text
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.recipe.load import load
from imbalance_vlm.recipe.study import coordinates, plan
from imbalance_vlm.results.averages import with_averages
from imbalance_vlm.results.comparison import compare
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.results.tables import markdown, select, table

KEPT = ROOT / "recipes" / "_results"
_FIELDS = (
    "schema",
    "recipe_hash",
    "config",
    "seed",
    "identity",
    "scores",
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
}


def collect(folder: Path) -> None:
    """Keep what the tables are made of from every run of a study, and its plot; per-class values stay behind."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    kept = []
    for run in study["runs"]:
        record = json.loads((folder / run / "result.json").read_text(encoding="utf-8"))
        groups = record["classes"]["groups"]
        identity = record["identity"] | {"pretrained": without_place(record["identity"]["pretrained"])}
        kept.append({key: record[key] for key in _FIELDS if key in record} | {"identity": identity, "groups": groups})
    write_json(KEPT / f"{study['name']}.json", packed(kept))
    if (folder / "plot.png").is_file():
        shutil.copyfile(folder / "plot.png", KEPT / f"{study['name']}.png")


def without_place(pretrained: str | None) -> str | None:
    """The weights without the folders of the machine that they lay on.

    >>> without_place("/home/me/weights/lite0.safetensors"), without_place("laion2b_s34b_b88k")
    ('lite0.safetensors', 'laion2b_s34b_b88k')
    """
    return Path(pretrained).name if pretrained and Path(pretrained).is_absolute() else pretrained


def packed(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Records with each environment once, and scores to 6 digits behind the point: a study has hundreds of runs."""
    environments: list[Any] = []
    runs = []
    for record in records:
        if record["environment"] not in environments:
            environments.append(record["environment"])
        scores = {key: None if value is None else round(value, 6) for key, value in record["scores"].items()}
        runs.append(record | {"scores": scores, "environment": environments.index(record["environment"])})
    return {"environments": environments, "runs": runs}


def study_frame(name: str) -> pd.DataFrame:
    """One row for each configuration of a kept study, with all columns."""
    kept = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    results = [RunResult(KEPT, record) for record in kept["runs"]]
    frame = table(results)
    wanted = table_settings(name)
    if wanted.get("baseline"):
        frame = compare(frame, results, wanted["baseline"], wanted.get("score") or "overall")
    frame["recipe"] = frame["recipe"].str.removeprefix(f"{name}/")
    if wanted.get("average"):
        frame = with_averages(frame, coordinates(plan(ROOT / "recipes" / f"{name}.yaml")), wanted["average"])
    return frame


def table_settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = load(ROOT / "recipes" / f"{name}.yaml").tree.get("table", {})
    return settings


def study_table(name: str) -> str:
    """The table of a kept study, with the columns its recipe asks for."""
    wanted = table_settings(name)
    return markdown(select(study_frame(name), wanted.get("columns"), wanted.get("sort")))


_REPAIRS = ("cross-entropy + ",)
_TEXT = ("text cosine", "zero-shot")


def which_one(name: str) -> str:
    """What the balancing study says to somebody who has to choose."""
    frame = study_frame(name).sort_values("overall", ascending=False)
    rarest = "few" if frame["few"].notna().any() else "medium"  # ten classes of photographs have no few
    repairs = frame[frame["recipe"].str.startswith(_REPAIRS)]
    without_text = frame[~frame["recipe"].str.startswith(_TEXT)]
    picks = {
        "the highest overall accuracy": frame.iloc[0],
        f"the highest accuracy on {rarest}": frame.sort_values(rarest).iloc[-1],
        "the highest overall without a text tower": without_text.iloc[0],
        "a classifier that is trained already, repaired": repairs.iloc[0],
        "no balancing, to compare with": frame[frame["recipe"] == "linear + cross-entropy"].iloc[0],
    }
    rows = [{"you want": want} | {"use": row["recipe"]} | _shown(row) for want, row in picks.items()]
    baseline = table_settings(name)["baseline"]
    others = frame[frame["recipe"] != baseline]
    known = others[others["p_value"].notna()]
    better = known[(known["p_value"] < 0.05) & (known["difference"] > 0)]
    worse = known[(known["p_value"] < 0.05) & (known["difference"] < 0)]
    same = len(others) - len(better) - len(worse)
    said = (
        f"Of the {len(others)} other rows, {len(better)} beat `{baseline}` overall, {len(worse)} lose to it and {same} "
        "cannot be told from it (paired t-test over the seeds, Holm's correction, 5 %)."
    )
    return (
        markdown(pd.DataFrame(rows))
        + "\n"
        + textwrap.fill(f"{said} {reading(frame, rarest)}", 120, break_on_hyphens=False)
    )


_ONCE = (
    "linear + balanced softmax",
    "linear + lade",
    "linear + class-balanced sampling",
    "linear + class-aware sampling",
    "cross-entropy + shift to uniform",
    "cross-entropy + post-hoc adjustment",
)
"""Rows that take the training prior out once: in the loss, by the sampler, or after training."""


def reading(frame: pd.DataFrame, rarest: str) -> str:
    """What the rows have in common, in words whose numbers come from the rows."""
    rows = frame.set_index("recipe")
    once, plain = rows.loc[list(_ONCE)], rows.loc["linear + cross-entropy"]
    twice, single = rows.loc["linear + sqrt sampling + balanced softmax + smoothing"], rows.loc[_ONCE[0]]
    adapter, both = rows.loc["adapter + balanced softmax"], rows.loc["adapter + balanced softmax + prototype contrast"]
    start, random = rows.loc["class-mean cosine + balanced softmax"], rows.loc["cosine + balanced softmax"]
    sade = ""
    if "experts + sade + aggregation" in rows.index:
        before, after = rows["overall"][["experts + sade", "experts + sade + aggregation"]]
        sade = f"The test-time aggregation of SADE moves its experts from {before:.1f} to {after:.1f}. "
    low, high = str(once["overall"].idxmin()), str(once["overall"].idxmax())
    return (
        f"Taking the training prior out once, in the loss, by the sampler or after training, ends between "
        f"{once['overall'][low]:.1f} (`{low}`) and {once['overall'][high]:.1f} (`{high}`); cross-entropy is at "
        f"{plain['overall']:.1f} and has {plain[rarest]:.1f} on {rarest}. Doing it twice (sqrt sampling, balanced "
        f"softmax) costs many {single['many'] - twice['many']:.1f} points for {twice[rarest] - single[rarest]:+.1f} on "
        f"{rarest}. An adapter before a cosine classifier is at {adapter['overall']:.1f} ({start['overall']:.1f} "
        f"without), with prototype contrast {both['overall']:.1f}; class means as its start are worth "
        f"{start['overall'] - random['overall']:+.1f}. {sade}Rows with published settings for training a whole "
        "backbone (vs, equalization, fixed prototypes) say nothing about that use: here the features are frozen, and "
        "nothing was tuned."
    )


def _shown(row: pd.Series) -> dict[str, str]:
    """Means and deviations as text, "-" for a group without classes."""
    scores = ("overall", "many", "medium", "few")
    return {s: "-" if pd.isna(row[s]) else f"{row[s]:.1f} ± {row[f'{s}_std']:.1f}" for s in scores}


def components() -> str:
    """Every registered component, by kind."""
    lines = []
    for kind, title in _KINDS.items():
        lines += [f"**{title}**", "", "| name | what it does | source |", "|---|---|---|"]
        for entry in catalogue.REGISTRIES[kind]:
            status = f" *({entry.status}, not verified against the authors' code)*" if entry.status else ""
            lines.append(f"| `{entry.name}` | {entry.summary}{status} | {entry.paper or '-'} |")
        lines.append("")
    return "\n".join(lines)


def icons_lt_facts() -> str:
    """What Icons-LT holds, counted in the shipped files."""
    data = IconsLTReader().read()
    tail = LongTail(data.counts, data.class_names)
    sizes = {name: len(split) for name, split in data.splits.items()}
    groups = {name: len(members) for name, members in tail.groups.items()}
    return (
        f"{data.num_classes} classes, {sizes['train']:,} training, {sizes['val']:,} validation and "
        f"{sizes['test']:,} test images of 32 x 32 pixels;\n"
        f"{groups['many']} classes are many, {groups['medium']} medium, {groups['few']} few; the largest has "
        f"{tail.counts.max()} training images, the smallest {tail.counts.min()} ({tail.imbalance:.1f} : 1)."
    )


def bench_output(name: str) -> str:
    """What a benchmark command printed, as it was kept."""
    return f"```\n{(KEPT / f'{name}.txt').read_text(encoding='utf-8').strip()}\n```"


def generated(text: str) -> str:
    """A document with its generated parts written anew."""
    parts: dict[str, Callable[[], str]] = {
        "catalogue": components,
        "icons_lt": icons_lt_facts,
        "which_one": lambda: which_one("studies/balancing"),
        "which_one_photos": lambda: which_one("studies/balancing_photos"),
    }

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        shown = bench_output if name.startswith("bench/") else study_table
        content = parts[name]() if name in parts else shown(name)
        return f"{match['head']}\n{content.rstrip()}\n{match['tail']}"

    head, tail = r"<!-- begin: (?P<name>[\w/]+) \(written by tools/readme[^>]*-->", r"<!-- end: (?P=name) -->"
    return re.sub(f"(?P<head>{head})\n.*?(?P<tail>{tail})", fill, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--collect", type=Path, action="append", default=[], metavar="FOLDER")
    given = parser.parse_args()
    for folder in given.collect:
        collect(folder)
    stale = 0
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        old = document.read_text(encoding="utf-8")
        new = generated(old)
        if new != old and given.check:
            stale = 1
        elif new != old:
            write_text(document, new)
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
