"""One component of each kind for imbalance_vlm, registered from another package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imbalance_vlm.components.catalogue import (
    DATASETS,
    ENCODERS,
    EVALUATORS,
    GRADIENTS,
    HEADS,
    LOSSES,
    PEFT,
    POST_HOC,
    PROMPTS,
    REGULARIZERS,
    SAMPLERS,
    SECOND_STAGES,
)


def _of_grey(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"text", "tokens"} | ({"shared_space"} if section["features"] == "embedding" else set()))


def _prompt(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"text.learned"} | (set() if section["csc"] else {"names.new"}))


DATASETS.add("indexed", "tail_extras.datasets:IndexedReader", "images that a tab-separated index lists")
ENCODERS.add("patches", "tail_extras.encoders:PatchSpec", "one linear map of image patches, from a file of yours")
ENCODERS.add(
    "grey", "tail_extras.encoders:GreySpec", "any open_clip model on grey images: `name: grey:MODEL`", provides=_of_grey
)
LOSSES.add(
    "poly1",
    "tail_extras.losses:Poly1",
    "balanced softmax plus epsilon times the missing probability",
    paper="Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, ICLR 2022",
)
LOSSES.add(
    "center",
    "tail_extras.losses:Center",
    "cross-entropy, and embeddings drawn to the moving mean of their class",
    paper="Wen et al., A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016",
    needs=frozenset({"embedding.learned"}),
)
SAMPLERS.add(
    "repeat_factor",
    "tail_extras.samplers:RepeatFactorSampler",
    "classes below a share of the images drawn more often",
    paper="Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR 2019",
)
HEADS.add(
    "low_rank",
    "tail_extras.heads:LowRankHead",
    "a linear classifier after a learned map of low rank",
    provides=frozenset({"trained", "embedding.learned"}),
)
REGULARIZERS.add(
    "variance",
    "tail_extras.regularizers:Variance",
    "embeddings whose every dimension varies over the batch",
    paper="Bardes et al., VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, "
    "ICLR 2022",
    needs=frozenset({"embedding.learned"}),
)
REGULARIZERS.add(
    "text_uniformity",
    "tail_extras.regularizers:TextUniformity",
    "learned text features of different classes pushed apart",
    paper="Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the "
    "Hypersphere, ICML 2020",
    needs=frozenset({"text.learned"}),
)
GRADIENTS.add(
    "centralised",
    "tail_extras.gradients:Centralised",
    "gradients of matrices without their mean over the inputs",
    paper="Yong et al., Gradient Centralization: A New Optimization Technique for Deep Neural Networks, ECCV 2020",
)
SECOND_STAGES.add(
    "scaled_bias", "tail_extras.second_stages:ScaledBias", "the classifier with its bias times a factor, by validation"
)
POST_HOC.add(
    "many_penalty", "tail_extras.corrections:ManyPenalty", "logits of many-shot classes lowered, by validation"
)
PROMPTS.add(
    "noisy_coop",
    "tail_extras.prompts:NoisyCoOp",
    "coop whose context is disturbed in every training step",
    provides=_prompt,
)
PEFT.add("norm_scale", "tail_extras.towers:NormScale", "the weights of the last layer norms, without their biases")
EVALUATORS.add("top_k", "tail_extras.evaluators:TopK", "accuracy of the k best guesses")
