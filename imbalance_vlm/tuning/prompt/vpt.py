"""VPT with CLIP: tokens in the image tower, and the text features of the class names as the classifier.

[0] Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim. Visual Prompt Tuning. ECCV 2022.
[1] github.com/muzairkhattak/multimodal-prompt-learning, trainers/vpt.py: SGD 2.5e-3 with one epoch of warm-up at 1e-5,
    batch 4, 5 epochs

    z_c = exp(logit_scale) * cos(f(x; P), t_c)      P: tokens of `imbalance_vlm/tuning/peft/vpt.py`, t_c: frozen

Differs from [1] in: 10 tokens (8 there); they stand behind the class token, pass no norm before the blocks and start
uniform, as in [0]'s code, where [1] appends them before the norm, from N(0, .02); t_c is over the data set's sentences,
where [1] has "a photo of a" alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from imbalance_vlm.components.ranges import Count, Natural, Part
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.text import TextHead
from imbalance_vlm.tuning.base import Task, Tuning
from imbalance_vlm.tuning.peft import vpt
from imbalance_vlm.tuning.peft.base import Tuned
from imbalance_vlm.tuning.prompt.base import check_task
from imbalance_vlm.tuning.prompt.vision_tokens import pixel_transforms
from imbalance_vlm.tuning.tuned_tower import TunedTower


class VPTHead(TunedTower):
    """Tokens in the image tower before the zero-shot classifier.

    Args:
        encoder: whose image tower holds the tokens.
        tuned: that tower.
        class_names: one for each class.
        templates: sentences with one `{}`.
    """

    def __init__(self, encoder: Encoder, tuned: Tuned, class_names: Sequence[str], templates: Sequence[str]) -> None:
        directions = encoder.text_features(class_names, templates)
        inner = TextHead(directions.shape[1], len(class_names), directions, encoder.logit_scale)
        super().__init__(encoder, tuned, inner, "embedding")
        self.templates = templates

    def for_names(
        self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor] | None = None
    ) -> VPTHead:
        """This head over other classes: the same tokens, not copies of them."""
        return VPTHead(self.encoder, self.tuned, class_names, self.templates)

    def text_of(self, class_names: Sequence[str]) -> Callable[[], Tensor]:
        """A function that gives the text features of other names, (M, d), which nothing changes."""
        found = self.encoder.text_features(class_names, self.templates)
        return lambda: found


class VPT(Tuning):
    """Tokens in the image tower; the text features of the class names are the classifier.

    Args:
        tokens: for each block that gets any.
        deep: new tokens for every block; false gives them to the first alone.
        views: k random crops of each image (mirrored too, where the dataset's classes survive that), epoch e on crop
            e mod k; None for a new one at every epoch, 0 for the model's own view.
        min_scale: smallest share of the image that a crop shows.
    """

    reads_pixels = True

    def __init__(
        self, *, tokens: Count = 10, deep: bool = True, views: Natural | None = None, min_scale: Part = 0.08
    ) -> None:
        self.method = vpt.VPT(tokens=tokens, deep=deep)
        self.views = views
        self.min_scale = min_scale
        self.tuned: Tuned | None = None

    def transforms(self, task: Task) -> list[View]:
        return pixel_transforms(task, self.views, self.min_scale)

    def head(self, task: Task, plain: Callable[[], Head]) -> Head:
        check_task(task)
        self.tuned = self.method.apply(task.encoder.module, len(task.class_names))
        return VPTHead(task.encoder, self.tuned, task.class_names, task.templates)

    def base(self) -> AbstractContextManager[None]:
        return nullcontext() if self.tuned is None else self.tuned.base()

    def close(self) -> None:
        if self.tuned is not None:
            self.tuned.remove()
            self.tuned = None
