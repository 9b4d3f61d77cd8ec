"""Write the table of docs/models.md: which architectures of open_clip each way of tuning supports.

    python tools/models.py           write the table (one to three minutes)
    python tools/models.py --check   exit 1 when it is stale

Every architecture is built on the meta device, where tensors have shapes but no values, so that nothing is downloaded.
Each way of tuning then makes its head and processes an image, by the functions that a run calls: what these refuse is
not supported, and their message is the reason. Towers keep their first two blocks, for speed.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property, partial
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
FAILURE = "fails in the first pass"


class OnMeta(OpenClipEncoder):
    """An encoder whose tensors have no values; its logit scale is one."""

    logit_scale = 1.0

    @cached_property
    def frozen(self) -> Tensor:
        """The features of the frozen tower, (1, d)."""
        features = self.image_features(make_image(self), "embedding")
        self._widths = {"embedding": features.shape[1]}
        return features


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the table is stale")
    options = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    answers: dict[str, dict[str, str]] = {}
    new = with_table(page, {name: supported(name, answers) for name in architectures()})
    if new == page:
        return 0
    if options.check:
        print(f"{PAGE.relative_to(ROOT)} is stale; run python tools/models.py", file=sys.stderr)
        return 1
    write_text(PAGE, new)
    return 0


def architectures() -> list[str]:
    """The architectures of open_clip's own files, in its order; `open_clip.list_models` also has added ones."""
    import open_clip

    shipped = {path.stem for path in (Path(open_clip.__file__).parent / "model_configs").glob("*.json")}
    return [name for name in open_clip.list_models() if name in shipped]


# -- one architecture --------------------------------------------------------------------------------------------------


def supported(name: str, answers: dict[str, dict[str, str]] | None = None) -> dict[str, str]:
    """What an architecture supports, by way of tuning: "yes", or why not.

    Args:
        name: of the architecture.
        answers: of the architectures so far, by their structure; it is extended.
    """
    answers = {} if answers is None else answers
    if text_config(name).get("hf_model_name"):  # its configuration, and so all its shapes, would be downloaded
        return dict.fromkeys(
            ways(), "its text tower is downloaded from Hugging Face and needs transformers: not tried here"
        )
    module = skeleton(name)
    shorten(module)
    kind = structure(module)
    if kind not in answers:
        encoder = encoder_of(module, name)
        with on_meta(), torch.no_grad():
            _ = encoder.frozen  # before a way of tuning changes the tower
            answers[kind] = {way: answer(partial(attempt, encoder), name) for way, attempt in ways().items()}
    return answers[kind]


def structure(module: Any) -> str:
    """Everything about a model except its sizes: models of one structure support the same methods."""
    text = getattr(module, "text", module)
    facts = [
        sorted({re.sub(r"\d+", "#", name) for name in module.state_dict()}),
        [getattr(module.visual, name, None) for name in ("pool_type", "attn_pool", "output_tokens")],
        [getattr(text, name, None) for name in ("pool_type", "text_pool_type", "use_pad_mask", "cls_emb")],
        text.attn_mask is None,
    ]
    return re.sub(r"[\d.]+(e-\d+)?", "#", f"{module} {facts}".replace("QuickGELU", "GELU"))


def ways() -> dict[str, Callable[[OnMeta], None]]:
    """Every way of tuning that is tried, by its column."""
    attempts: dict[str, Callable[[OnMeta], None]] = {
        "zero_shot": zero_shot,
        "linear_probe": linear_probe,
        "class_token": partial(linear_probe, kind="class_token"),
        "decoder": decoder,
    }
    for saving in SAVINGS:
        attempts[f"exact {saving}"] = partial(exact, saving=saving)
    for family, methods in (("prompt", catalogue.PROMPTS), ("peft", catalogue.PEFT)):
        for method in methods.names():
            attempts[f"{family}: {method}"] = partial(tuned, section={"name": family, "method": method})
    attempts["full"] = partial(tuned, section={"name": "full"})
    attempts["full, lr_decay"] = partial(tuned, section={"name": "full", "lr_decay": 0.7})
    return attempts


def answer(attempt: Callable[[], None], name: str) -> str:
    """ "yes", the message of the refusal, or the type of the error."""
    try:
        attempt()
    except InputError as refusal:
        message = re.sub(r"(tuning )?method '\w+'", r"this \1method", str(refusal))
        return message.replace(f"encoder '{name}'", "this encoder").replace(f"'{name}'", "of this kind")
    except Exception as error:  # the package should have refused this tower
        return f"{FAILURE}, with a {type(error).__name__}"
    return YES


def zero_shot(encoder: OnMeta) -> None:
    head = TextHead(encoder.text_features(NAMES, ("a {}.",)))
    head(encoder.frozen)


def linear_probe(encoder: OnMeta, kind: str = "embedding") -> None:
    features = encoder.frozen if kind == "embedding" else encoder.image_features(make_image(encoder), kind)
    linear(encoder, kind)(features)


def decoder(encoder: OnMeta) -> None:
    tokens = encoder.image_features(make_image(encoder), "tokens")
    DecoderHead(encoder.width("tokens"), len(NAMES), heads=1).to(META)(tokens)


def exact(encoder: OnMeta, saving: str) -> None:
    if saving not in PromptedText(encoder, NAMES).savings:
        raise InputError("its text tower attends in both directions, or pools tokens after the text")


def tuned(encoder: OnMeta, section: dict[str, Any]) -> None:
    """Make the head of a method, and process an image with it."""
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
        head(make_image(encoder) if tuning.reads_pixels else encoder.frozen)
    finally:
        tuning.close()


def linear(encoder: OnMeta, kind: str) -> Head:
    return LinearHead(encoder.width(kind), len(NAMES)).to(META)


def encoder_of(module: nn.Module, name: str) -> OnMeta:
    """An encoder with open_clip's own tokenizer, whatever the architecture's: only the number of tokens matters."""
    height, width = image_size(module)
    preprocessing = Preprocessing((height, width), mean=(0, 0, 0), std=(1, 1, 1))
    return OnMeta(module, preprocessing, tokenizer_of(module), name, "random", None, "")


@cache
def simple_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def tokenizer_of(module: nn.Module) -> Callable[..., Tensor]:
    length = getattr(module, "text", module).context_length

    def tokens(texts: Sequence[str], context_length: int | None = None) -> Tensor:
        ids: Tensor = simple_tokenizer()(list(texts), context_length=context_length or length)
        return ids

    return tokens


def make_image(encoder: Any) -> Tensor:
    return torch.zeros(1, 3, *image_size(encoder.module), device=META)


def image_size(module: Any) -> tuple[int, int]:
    size = module.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return height, width


def shorten(module: nn.Module) -> None:
    """Keep the first blocks of both towers: what a tower supports does not depend on their number."""
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
    """Replace what needs more than shapes.

    The mask of attention, which has no values on the meta device, is built again on the CPU. Autocast, which torch does
    not have there, is off.
    """
    from open_clip.transformer import TextTransformer

    is_causal = text_tower._is_causal

    def causal(mask: Tensor | None, length: int) -> bool:
        if mask is not None and mask.is_meta:
            mask = TextTransformer.build_causal_mask(SimpleNamespace(num_pos=len(mask)))
        return is_causal(mask, length)

    no_autocast = patch.object(open_clip_encoders, "autocast", lambda device, precision: nullcontext())
    with no_autocast, patch.object(text_tower, "_is_causal", causal):
        yield


# -- the page ----------------------------------------------------------------------------------------------------------


def with_table(page: str, answers: Mapping[str, Mapping[str, str]]) -> str:
    """The page with the table between its markers."""
    begin, end = "<!-- begin: models (python tools/models.py) -->", "<!-- end: models -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table(answers)}\n{end}{after}"


def table(answers: Mapping[str, Mapping[str, str]]) -> str:
    """A row for all architectures that support the same, a column for all ways that the same architectures support."""
    import open_clip

    groups: dict[tuple[str, ...], list[str]] = {}
    for name, support in answers.items():
        groups.setdefault((tokenizer(name), *support.values()), []).append(name)
    labels = ["tokenizer", *ways()]
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
    title = f"The {len(answers)} architectures of open_clip {open_clip.__version__}:"
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join(
        [title, "", head, "|---" * (len(columns) + 1) + "|", *rows, "", "Reasons, as a run states them:", "", *notes]
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
