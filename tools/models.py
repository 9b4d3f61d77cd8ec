"""Write the table of docs/models.md: which of open_clip's architectures each way of tuning supports.

    python tools/models.py           write it (one to three minutes)
    python tools/models.py --check   exit 1 when it is stale

Every architecture is built on the meta device, where tensors have shapes and no numbers, so that there is nothing to
download. Then each way of tuning is asked for its head and sent an image, by the same functions that a run calls: what
these refuse is not supported, and their words are the reason. Towers keep their first two blocks, for speed.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from imbalance_vlm.components import catalogue
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders import open_clip as open_clip_encoders
from imbalance_vlm.encoders import text_tower
from imbalance_vlm.encoders.architectures import skeleton, text_config
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.prompted_text import SAVINGS, PromptedText
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_text
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.decoder import DecoderHead
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.heads.text import TextHead
from imbalance_vlm.tuning.base import Tuning, TuningContext
from imbalance_vlm.tuning.peft.towers import LAYOUTS, image_tower

PAGE = ROOT / "docs" / "models.md"
NAMES = ("red apple", "cat")
BLOCKS = 2
META = torch.device("meta")
YES = "yes"
UNREFUSED = "fails in the first pass"


class OnMeta(OpenClipEncoder):
    """An encoder without numbers; its scale is one, and the frozen tower's features are computed once."""

    logit_scale = 1.0

    def frozen(self) -> Tensor:
        if not hasattr(self, "_frozen"):
            self._frozen = self.image_features(make_image(self), "embedding")
            self._widths = {"embedding": self._frozen.shape[1]}
        return self._frozen


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the table is stale")
    options = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    new = with_table(page, {name: supported(name) for name in architectures()})
    if new == page:
        return 0
    if options.check:
        print(f"{PAGE.relative_to(ROOT)} is stale; run python tools/models.py", file=sys.stderr)
        return 1
    write_text(PAGE, new)
    return 0


def architectures() -> list[str]:
    """Those that open_clip came with, in its order; `open_clip.list_models` has what this process added as well."""
    import open_clip

    own = {path.stem for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json")}
    return [name for name in open_clip.list_models() if name in own]


# -- one architecture --------------------------------------------------------------------------------------------------


def supported(name: str) -> dict[str, str]:
    """What an architecture supports, by way of tuning: "yes", or why not."""
    tower = text_config(name).get("hf_model_name")
    if tower:  # its configuration lies on a hub, and with it all shapes
        return dict.fromkeys(
            ways(), "its text tower is fetched from Hugging Face and needs transformers: not tried here"
        )
    module = skeleton(name)
    shorten(module)
    kind = structure(module)
    if kind not in _ANSWERS:
        encoder = encoder_of(module, name)
        with on_meta(), torch.no_grad():
            encoder.frozen()
            _ANSWERS[kind] = {way: answer(partial(run, encoder), name) for way, run in ways().items()}
    return _ANSWERS[kind]


_ANSWERS: dict[str, dict[str, str]] = {}


def structure(module: Any) -> str:
    """All of a model but its sizes: what two models of one structure support is the same."""
    text = getattr(module, "text", module)
    facts = [
        sorted({re.sub(r"\d+", "#", name) for name in module.state_dict()}),
        [getattr(module.visual, name, None) for name in ("pool_type", "attn_pool", "output_tokens")],
        [getattr(text, name, None) for name in ("pool_type", "text_pool_type", "use_pad_mask", "cls_emb")],
        text.attn_mask is None,
    ]
    return re.sub(r"[\d.]+(e-\d+)?", "#", f"{module} {facts}".replace("QuickGELU", "GELU"))


def ways() -> dict[str, Callable[[OnMeta], None]]:
    """Everything that is asked, by its column."""
    asked: dict[str, Callable[[OnMeta], None]] = {
        "zero_shot": zero_shot,
        "linear_probe": linear_probe,
        "class_token": partial(linear_probe, kind="class_token"),
        "decoder": decoder,
    }
    for saving in SAVINGS:
        asked[f"exact {saving}"] = partial(exact, saving=saving)
    for family, methods in (("prompt", catalogue.PROMPTS), ("peft", catalogue.PEFT)):
        for method in methods.names():
            asked[f"{family}: {method}"] = partial(tuned, section={"name": family, "method": method})
    asked["full"] = partial(tuned, section={"name": "full"})
    asked["full, lr_decay"] = partial(tuned, section={"name": "full", "lr_decay": 0.7})
    return asked


def answer(ask: Callable[[], None], name: str) -> str:
    try:
        ask()
    except InputError as refusal:
        return re.sub(r"method '\w+'", "this method", str(refusal).replace(f"'{name}'", "of this kind"))
    except Exception as error:  # a tower that should have been refused
        return f"{UNREFUSED}, with a {type(error).__name__}"
    return YES


def zero_shot(encoder: OnMeta) -> None:
    head = TextHead(encoder.text_features(NAMES, ("a {}.",)))
    head(encoder.frozen())


def linear_probe(encoder: OnMeta, kind: str = "embedding") -> None:
    features = encoder.frozen() if kind == "embedding" else encoder.image_features(make_image(encoder), kind)
    linear(encoder, kind)(features)


def decoder(encoder: OnMeta) -> None:
    tokens = encoder.image_features(make_image(encoder), "tokens")
    DecoderHead(encoder.width("tokens"), len(NAMES), heads=1).to(META)(tokens)


def exact(encoder: OnMeta, saving: str) -> None:
    if saving not in PromptedText(encoder, NAMES).savings:
        raise InputError("the text tower looks both ways, or pools what stands behind the text")


def tuned(encoder: OnMeta, section: dict[str, Any]) -> None:
    """Make a method's head, and send an image through it."""
    tuning: Tuning = catalogue.TUNINGS.make(section, {})
    context = TuningContext(
        encoder,
        "embedding",
        NAMES,
        (),
        ("a {}.",),
        META,
        epochs=1,
        seed=0,
        flips=False,
        text_features=encoder.text_features,
    )
    try:
        head = tuning.head(context, partial(linear, encoder, "embedding")).to(META)
        head(make_image(encoder) if tuning.reads_pixels else encoder.frozen())
    finally:
        tuning.close()


def linear(encoder: OnMeta, kind: str) -> Head:
    return LinearHead(encoder.width(kind), len(NAMES)).to(META)


def encoder_of(module: nn.Module, name: str) -> OnMeta:
    """Words come from open_clip's own tokenizer, whatever the architecture's: only their number matters here."""
    height, width = image_size(module)
    preprocessing = Preprocessing((height, width), mean=(0, 0, 0), std=(1, 1, 1))
    return OnMeta(module, preprocessing, words(module), name, "random", None, "")


def words(module: nn.Module) -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    if not hasattr(words, "kept"):
        words.kept = SimpleTokenizer()  # type: ignore[attr-defined]
    length = getattr(module, "text", module).context_length

    def tokens(texts: Sequence[str], context_length: int | None = None) -> Tensor:
        ids: Tensor = words.kept(list(texts), context_length=context_length or length)  # type: ignore[attr-defined]
        return ids

    return tokens


def make_image(encoder: Any) -> Tensor:
    return torch.zeros(1, 3, *image_size(encoder.module), device=META)


def image_size(module: Any) -> tuple[int, int]:
    size = module.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return height, width


def shorten(module: nn.Module) -> None:
    """Keep the first blocks of both towers: which parts there are does not depend on how often they repeat."""
    for root in (image_tower(module), getattr(module, "text", module)):
        for path in LAYOUTS:
            try:
                blocks = root.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(blocks, (nn.Sequential, nn.ModuleList)):
                del blocks[BLOCKS:]


@contextmanager
def on_meta() -> Iterator[None]:
    """What asks for more than shapes: a mask has no numbers to look at, so the library builds the same one anew, and
    torch has no autocast there."""
    from open_clip.transformer import TextTransformer

    look = text_tower._is_causal

    def causal(mask: Tensor | None, length: int) -> bool:
        if mask is not None and mask.is_meta:
            mask = TextTransformer.build_causal_mask(SimpleNamespace(num_pos=len(mask)))
        return look(mask, length)

    without = patch.object(open_clip_encoders, "autocast", lambda device, precision: nullcontext())
    with without, patch.object(text_tower, "_is_causal", causal):
        yield


# -- the page ----------------------------------------------------------------------------------------------------------


def with_table(page: str, found: Mapping[str, Mapping[str, str]]) -> str:
    """The page with the table between its marks."""
    begin, end = "<!-- begin: models (python tools/models.py) -->", "<!-- end: models -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table(found)}\n{end}{after}"


def table(found: Mapping[str, Mapping[str, str]]) -> str:
    """A row for all architectures that support the same, a column for all ways that the same ones support."""
    import open_clip

    groups: dict[tuple[str, ...], list[str]] = {}
    for name, answers in found.items():
        groups.setdefault((tokenizer(name), *answers.values()), []).append(name)
    labels = ["words", *ways()]
    columns: dict[tuple[str, ...], list[str]] = {}
    for number, label in enumerate(labels):
        columns.setdefault(tuple(group[number] for group in groups), []).append(label)
    reasons: list[str] = []
    rows = []
    for row, names in enumerate(groups.values()):
        cells = [cell(column[row], reasons) for column in columns]
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {' | '.join(cells)} |")
    head = (
        f"| architecture | {' | '.join(', '.join(short(label) for label in labels) for labels in columns.values())} |"
    )
    said = f"As open_clip {open_clip.__version__} has them, {len(found)} architectures."
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join(
        [said, "", head, "|---" * (len(columns) + 1) + "|", *rows, "", "Refused, in the words of the run:", "", *notes]
    )


def tokenizer(name: str) -> str:
    return "transformers" if text_config(name).get("hf_tokenizer_name") else "built in"


def cell(answer: str, reasons: list[str]) -> str:
    if answer in (YES, "built in", "transformers"):
        return answer
    if answer not in reasons:
        reasons.append(answer)
    return f"({reasons.index(answer) + 1})"


def short(label: str) -> str:
    return label.replace("_", " ")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    raise SystemExit(main())
