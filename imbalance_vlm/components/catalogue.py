"""The components that a recipe can name, one entry each. No component is imported before it is used.

Other packages can add to these registries: they call `LOSSES.add("mine", "my_package.losses:Mine", "what it does")` in
a module named by the entry point group `imbalance_vlm.plugins`; docs/extending.md shows a complete package.

One rule decides which components can be combined: what one component needs, another must provide. `CAPABILITIES` lists
what can be needed and provided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from imbalance_vlm.components.registry import Entry, Registry
from imbalance_vlm.errors import InputError


class EncoderRegistry(Registry):
    """The encoder adapters. A recipe names a model, whose prefix chooses the adapter.

    "timm:resnet50" belongs to the adapter "timm"; a name without the prefix of an adapter belongs to open_clip.
    """

    def get(self, name: str) -> Entry:
        prefix, colon, _ = name.partition(":")
        return super().get(prefix if colon and prefix in self else name if name in self else DEFAULT_ENCODER)


DEFAULT_ENCODER = "open_clip"

DATASETS = Registry("dataset", provides=lambda section: frozenset(_if(section.get("classes") == "base", "novel")))
ENCODERS = EncoderRegistry("encoder")
HEADS = Registry("head")
LOSSES = Registry("loss", when="training")
SAMPLERS = Registry("sampler", when="training")
REGULARIZERS = Registry("regularizer", needs=frozenset({"training"}))
GRADIENTS = Registry("gradient transform", when="training")
SECOND_STAGES = Registry("second stage", needs=frozenset({"training"}))
POST_HOC = Registry("post-hoc correction")
TUNINGS = Registry("tuning")
PROMPTS = Registry("prompt method")
PEFT = Registry("tuning method")
OPTIMIZERS = Registry("optimizer", when="training")
SCHEDULES = Registry("schedule", when="training")
EVALUATORS = Registry("evaluator")


@dataclass(frozen=True)
class Capability:
    """Something that a component may need and another one provides.

    Args:
        description: what provides it, in words that complete "needs ...".
        section: the key of the recipe's section that usually provides it, for the message.
    """

    description: str
    section: str


CAPABILITIES: dict[str, Capability] = {
    "text": Capability("an encoder with a text tower, such as any open_clip model", "encoder"),
    "tokens": Capability("an encoder that returns all image tokens", "encoder"),
    "shared_space": Capability(
        "image features in the space of the text features: set encoder.features to embedding", "encoder"
    ),
    "names": Capability("a head that classifies by the class names: use head 'text'", "head"),
    "names.new": Capability(
        "a classifier that can read the names of new classes: use tuning 'zero_shot' or a prompt method with csc false",
        "tuning",
    ),
    "novel": Capability("a dataset that holds classes out: set data.classes to base", "data"),
    "trained": Capability(
        "a head with trained parameters; for a classifier that starts from the text features use "
        "{name: cosine, init: text}",
        "head",
    ),
    "training": Capability("a tuning that trains: any except 'zero_shot'", "tuning"),
    "tower.trained": Capability("a tuning that trains the image tower: use 'full' or 'peft'", "tuning"),
    "embedding.learned": Capability(
        "an embedding that training changes: set head.adapter to a width such as 128, use head 'decoder', or tune the "
        "image tower",
        "head",
    ),
    "text.learned": Capability(
        "text features that training changes: use a tuning that does, such as {name: prompt, method: coop}", "tuning"
    ),
    "cosines": Capability(
        "a head whose logits are cosines times a fixed scale: use head 'cosine' with learn_scale false", "head"
    ),
    "products": Capability(
        "a head of unscaled products with fixed prototypes: use {name: prototype, scale: 1}", "head"
    ),
    "products.loss": Capability("a loss on unscaled products: use loss 'etf_dot_regression'", "balancing.loss"),
    "experts": Capability("a head with several experts: use head 'experts'", "head"),
    "experts.loss": Capability("a loss that trains several experts: use loss 'sade'", "balancing.loss"),
    "start": Capability("a head that does not start at random: set head.init to text or class_mean", "head"),
}
"""What components can need and provide. Plug-ins may add to it; messages show unlisted capabilities by name."""

_PKG = "imbalance_vlm"
_UCPG = (
    "Fu et al., Uniformly Distributed Category Prototype-Guided Vision-Language Framework for Long-Tail Recognition, "
    "2023"
)

# -- data ------------------------------------------------------------------------------------------------------------
DATASETS.add(
    "icons_lt",
    f"{_PKG}.data.icons:IconsReader",
    "Icons-LT: 718 classes of everyday concepts drawn by many designers, included in the package",
)
for _name, _topic in {
    "icons_animals": "animals and their traces",
    "icons_arrows": "arrows, told apart by direction and frame",
    "icons_devices": "devices and their states, such as levels of a battery",
    "icons_faces": "faces and hands",
    "icons_food": "food and drink",
    "icons_health": "health and the body",
    "icons_media": "music and video",
    "icons_places": "places and buildings",
    "icons_sports": "sports and games",
    "icons_transport": "vehicles and travel",
    "icons_weather": "weather, moons and stars",
}.items():
    DATASETS.add(_name, f"{_PKG}.data.icons:IconsReader", f"icons of {_topic}, included in the package")
for _name, _style in {
    "icons_lt_colour": "flat colours",
    "icons_lt_drawn": "lines as of a pencil or a press",
    "icons_lt_duotone": "two tones",
    "icons_lt_emoji": "the style of emoji",
    "icons_lt_filled": "filled outlines",
    "icons_lt_pixel": "pixels",
}.items():
    DATASETS.add(_name, f"{_PKG}.data.icons:IconsReader", f"classes of Icons-LT drawn in {_style}, included, test only")
DATASETS.add(
    "folder",
    f"{_PKG}.data.folder:FolderReader",
    "your images in class folders: train/ and test/, or one folder to split",
)
DATASETS.add(
    "imagenet_lt", f"{_PKG}.data.long_tailed:ImageNetLTReader", "ImageNet-LT: 1000 classes with 1280 to 5 images each"
)
DATASETS.add(
    "places_lt",
    f"{_PKG}.data.long_tailed:PlacesLTReader",
    "Places-LT: 365 classes of scenes with 4980 to 5 images each",
)
DATASETS.add(
    "inat2018", f"{_PKG}.data.long_tailed:INat2018Reader", "iNaturalist 2018: 8142 species with 1000 to 2 images each"
)
DATASETS.add(
    "cifar10_lt",
    f"{_PKG}.data.cifar_lt:CifarLTReader",
    "CIFAR-10-LT: CIFAR-10 subsampled to an exponential tail of any imbalance factor",
)
DATASETS.add(
    "cifar100_lt",
    f"{_PKG}.data.cifar_lt:CifarLTReader",
    "CIFAR-100-LT: CIFAR-100 subsampled to an exponential tail of any imbalance factor",
)
DATASETS.add("imagenet", f"{_PKG}.data.few_shot:ImageNetReader", "ImageNet: 1000 classes, read from its class folders")
DATASETS.add("caltech101", f"{_PKG}.data.few_shot:SplitFileReader", "Caltech101: 100 classes of objects")
DATASETS.add("oxford_pets", f"{_PKG}.data.few_shot:SplitFileReader", "Oxford-IIIT Pet: 37 breeds of cats and dogs")
DATASETS.add("stanford_cars", f"{_PKG}.data.few_shot:SplitFileReader", "Stanford Cars: 196 car models")
DATASETS.add("oxford_flowers", f"{_PKG}.data.few_shot:SplitFileReader", "Flowers102: 102 classes of flowers")
DATASETS.add("food101", f"{_PKG}.data.few_shot:SplitFileReader", "Food101: 101 dishes")
DATASETS.add("fgvc_aircraft", f"{_PKG}.data.few_shot:AircraftReader", "FGVC Aircraft: 100 aircraft variants")
DATASETS.add("sun397", f"{_PKG}.data.few_shot:SplitFileReader", "SUN397: 397 classes of scenes")
DATASETS.add("dtd", f"{_PKG}.data.few_shot:SplitFileReader", "DTD: 47 classes of textures")
DATASETS.add("eurosat", f"{_PKG}.data.few_shot:SplitFileReader", "EuroSAT: 10 classes of land use seen from satellites")
DATASETS.add("ucf101", f"{_PKG}.data.few_shot:SplitFileReader", "UCF101: 101 human actions, one frame per video")
DATASETS.add(
    "imagenet_v2",
    f"{_PKG}.data.few_shot:ImageNetVariantReader",
    "ImageNet-V2: new images of the ImageNet classes (matched frequency), test only",
)
DATASETS.add(
    "imagenet_sketch",
    f"{_PKG}.data.few_shot:ImageNetVariantReader",
    "ImageNet-Sketch: sketches of the ImageNet classes, test only",
)
DATASETS.add(
    "imagenet_a",
    f"{_PKG}.data.few_shot:ImageNetVariantReader",
    "ImageNet-A: photographs that classifiers get wrong, 200 classes, test only",
)
DATASETS.add(
    "imagenet_r",
    f"{_PKG}.data.few_shot:ImageNetVariantReader",
    "ImageNet-R: drawings and other renditions, 200 classes, test only",
)
DATASETS.add("table", f"{_PKG}.data.table:TableReader", "your images, listed in a CSV, TSV or Parquet table")
DATASETS.add("hf_disk", f"{_PKG}.data.hf_disk:HFDiskReader", "a Hugging Face dataset saved to disk")
DATASETS.add("webdataset", f"{_PKG}.data.webdataset:WebDatasetReader", "WebDataset shards (tar files), read in place")


def _open_clip_provides(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"text", "tokens"} | _if(section["features"] == "embedding", "shared_space"))


# -- encoders --------------------------------------------------------------------------------------------------------
ENCODERS.add(
    "open_clip",
    f"{_PKG}.encoders.open_clip:OpenClipSpec",
    "any open_clip model, by name and tag or from a local file or folder; includes mini-clip",
    provides=_open_clip_provides,
)
ENCODERS.add(
    "timm",
    f"{_PKG}.encoders.timm:TimmSpec",
    "any timm backbone, without a text tower: `name: timm:MODEL`",
    provides=frozenset({"tokens"}),
)


def _if(condition: bool, *capabilities: str) -> set[str]:
    return set(capabilities) if condition else set()


def _start_needs(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(_if("text" in (section.get("init"), section.get("assign")), "text"))


def _decoder_needs(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"tokens"}) | _start_needs(section)


def _experts_needs(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"experts.loss"}) | _start_needs(section)


def _prototype_needs(section: Mapping[str, Any]) -> frozenset[str]:
    return _start_needs(section) | _if(not section["normalise"], "products.loss")


def _contrast_needs(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"embedding.learned|text.learned"}) | _start_needs(section)


def _classifier_provides(section: Mapping[str, Any]) -> frozenset[str]:
    """What a head with a trained classifier provides."""
    adapter, start = bool(section.get("adapter")), section["init"] != "random"
    return frozenset({"trained"} | _if(adapter, "embedding.learned") | _if(start, "start"))


def _cosine_provides(section: Mapping[str, Any]) -> frozenset[str]:
    return _classifier_provides(section) | _if(not section["learn_scale"], "cosines")


def _decoder_provides(section: Mapping[str, Any]) -> frozenset[str]:
    return _classifier_provides(section) | {"embedding.learned"}


def _experts_provides(section: Mapping[str, Any]) -> frozenset[str]:
    return _classifier_provides(section) | {"experts"}


def _prototype_provides(section: Mapping[str, Any]) -> frozenset[str]:
    unscaled = not section["normalise"] or section["scale"] == 1
    return frozenset(
        {"trained", "embedding.learned", "start"} | _if(section["normalise"], "cosines") | _if(unscaled, "products")
    )


# -- heads -----------------------------------------------------------------------------------------------------------
HEADS.add(
    "text",
    f"{_PKG}.heads.text:TextHead",
    "zero-shot classifier: the text features of the class names",
    paper="Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
    needs=frozenset({"text", "shared_space"}),
    provides=frozenset({"names", "cosines", "start"}),
)
HEADS.add(
    "linear", f"{_PKG}.heads.linear:LinearHead", "one affine layer", needs=_start_needs, provides=_classifier_provides
)
HEADS.add(
    "cosine",
    f"{_PKG}.heads.cosine:CosineHead",
    "scaled cosine to one direction per class, initialised from the text by default",
    paper="Shi et al., Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts, ICML 2024",
    needs=_start_needs,
    provides=_cosine_provides,
)
HEADS.add(
    "decoder",
    f"{_PKG}.heads.decoder:DecoderHead",
    "transformer blocks over all image tokens, then a linear layer on the class token",
    paper="Wang et al., Exploring Vision-Language Models for Imbalanced Learning, IJCV 2024",
    needs=_decoder_needs,
    provides=_decoder_provides,
)
HEADS.add(
    "experts",
    f"{_PKG}.heads.experts:ExpertsHead",
    "three linear classifiers on the same features, for the loss `sade`",
    paper="Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition, "
    "NeurIPS 2022",
    needs=_experts_needs,
    provides=_experts_provides,
)

HEADS.add(
    "prototype",
    f"{_PKG}.heads.prototype:PrototypeHead",
    "fixed prototypes that are far apart, and a trained map from the features to them",
    paper="Yang et al., Inducing Neural Collapse in Imbalanced Learning, NeurIPS 2022",
    needs=_prototype_needs,
    provides=_prototype_provides,
)
HEADS.add(
    "prototype_guided",
    f"{_PKG}.heads.prototype_guided:PrototypeGuidedHead",
    "a linear classifier plus the cosine to the mean of each class (UCPG)",
    paper=_UCPG,
    needs=_start_needs,
    provides=_classifier_provides,
    status="reconstruction",
)

# -- losses ----------------------------------------------------------------------------------------------------------
LOSSES.add("cross_entropy", f"{_PKG}.balancing.losses.cross_entropy:CrossEntropy", "softmax cross-entropy")
LOSSES.add(
    "focal",
    f"{_PKG}.balancing.losses.focal:Focal",
    "cross-entropy with less weight on samples that are already classified well",
    paper="Lin et al., Focal Loss for Dense Object Detection, ICCV 2017",
)
LOSSES.add(
    "balanced_softmax",
    f"{_PKG}.balancing.losses.balanced_softmax:BalancedSoftmax",
    "softmax over logits shifted by the log class counts",
    paper="Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020",
)
LOSSES.add(
    "logit_adjustment",
    f"{_PKG}.balancing.losses.logit_adjustment:LogitAdjustment",
    "softmax over logits shifted by tau times the log prior",
    paper="Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021",
)
LOSSES.add(
    "weighted",
    f"{_PKG}.balancing.losses.weighted:Weighted",
    "cross-entropy weighted by a power of the inverse class frequency (GRW)",
    paper="Zhang et al., Distribution Alignment: A Unified Framework for Long-tail Visual Recognition, CVPR 2021",
)
LOSSES.add(
    "class_balanced",
    f"{_PKG}.balancing.losses.class_balanced:ClassBalanced",
    "cross-entropy or focal loss weighted by the effective number of samples",
    paper="Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019",
)
LOSSES.add(
    "ldam",
    f"{_PKG}.balancing.losses.ldam:LDAM",
    "cosine margins that are larger for rarer classes, with optional deferred class weights",
    paper="Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019",
    needs=frozenset({"cosines"}),
)
LOSSES.add(
    "vs",
    f"{_PKG}.balancing.losses.vs:VS",
    "softmax over logits scaled and shifted per class (vector scaling)",
    paper="Kini et al., Label-Imbalanced and Group-Sensitive Classification under Overparameterization, NeurIPS 2021",
)
LOSSES.add(
    "lade",
    f"{_PKG}.balancing.losses.lade:LADE",
    "balanced softmax, and a term that removes the training prior from the raw logits",
    paper="Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition, CVPR 2021",
)
LOSSES.add(
    "equalization",
    f"{_PKG}.balancing.losses.equalization:Equalization",
    "one sigmoid per class, in which rare classes ignore the samples of other classes",
    paper="Tan et al., Equalization Loss for Long-Tailed Object Recognition, CVPR 2020",
)
LOSSES.add(
    "seesaw",
    f"{_PKG}.balancing.losses.seesaw:Seesaw",
    "softmax with smaller penalties on rarer classes, from counts gathered during training",
    paper="Wang et al., Seesaw Loss for Long-Tailed Instance Segmentation, CVPR 2021",
)
LOSSES.add(
    "gaussian_clouded",
    f"{_PKG}.balancing.losses.gaussian_clouded:GaussianClouded",
    "softmax over cosines lowered by random noise, which is larger for rarer classes",
    paper="Li et al., Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment, CVPR 2022",
    needs=frozenset({"cosines"}),
)
LOSSES.add(
    "paco",
    f"{_PKG}.balancing.losses.paco:PaCo",
    "one softmax over the classes and the embeddings of past samples",
    paper="Cui et al., Parametric Contrastive Learning, ICCV 2021",
    needs=frozenset({"embedding.learned"}),
)
LOSSES.add(
    "gpaco",
    f"{_PKG}.balancing.losses.paco:GPaCo",
    "PaCo with the other samples of the batch as keys too, and gradients through them",
    paper="Cui et al., Generalized Parametric Contrastive Learning, TPAMI 2023",
    needs=frozenset({"embedding.learned"}),
)
LOSSES.add(
    "etf_dot_regression",
    f"{_PKG}.balancing.losses.etf_dot_regression:ETFDotRegression",
    "embeddings pulled to the fixed prototype of their class, and not pushed from the others",
    paper="Yang et al., Inducing Neural Collapse in Imbalanced Learning, NeurIPS 2022",
    needs=frozenset({"products"}),
    provides=frozenset({"products.loss"}),
)
LOSSES.add(
    "sade",
    f"{_PKG}.balancing.losses.sade:SADE",
    "three experts: for the training distribution, a uniform one and a reversed one",
    paper="Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition, "
    "NeurIPS 2022",
    needs=frozenset({"experts"}),
    provides=frozenset({"experts.loss"}),
)

# -- samplers --------------------------------------------------------------------------------------------------------
SAMPLERS.add("instance", f"{_PKG}.balancing.samplers.instance:InstanceSampler", "every image once per epoch, shuffled")
SAMPLERS.add(
    "class_balanced",
    f"{_PKG}.balancing.samplers.class_balanced:ClassBalancedSampler",
    "every class equally often, with replacement",
    paper="Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020",
)
SAMPLERS.add(
    "class_aware",
    f"{_PKG}.balancing.samplers.class_aware:ClassAwareSampler",
    "the classes in turn, k images of each",
    paper="Shen et al., Relay Backpropagation for Effective Learning of Deep Convolutional Neural Networks, ECCV 2016",
)
SAMPLERS.add(
    "sqrt",
    f"{_PKG}.balancing.samplers.sqrt:SqrtSampler",
    "classes in proportion to the square root of their size, with replacement",
    paper="Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, ECCV 2018",
)
SAMPLERS.add(
    "progressive",
    f"{_PKG}.balancing.samplers.progressive:ProgressiveSampler",
    "from instance-balanced to class-balanced over the epochs",
    paper="Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020",
)

# -- regularizers ----------------------------------------------------------------------------------------------------
REGULARIZERS.add(
    "prototype_contrastive",
    f"{_PKG}.balancing.regularizers.prototype_contrastive:PrototypeContrastive",
    "embeddings and learned text features pulled to the uniform prototype of their class",
    paper=_UCPG,
    status="reconstruction",
    needs=_contrast_needs,
)
REGULARIZERS.add(
    "image_text_contrast",
    f"{_PKG}.balancing.regularizers.image_text_contrast:ImageTextContrast",
    "contrast between embeddings and learned text features, with the frozen model as teacher",
    paper=_UCPG,
    status="reconstruction",
    needs=frozenset({"text.learned"}),
)
REGULARIZERS.add(
    "text_anchor",
    f"{_PKG}.balancing.regularizers.text_anchor:text_anchor",
    "learned text features kept near the frozen ones, for base, novel (NFL) or external names",
    paper="Yao et al., Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization, CVPR 2023",
    needs=frozenset({"text.learned"}),
)
REGULARIZERS.add(
    "npt",
    f"{_PKG}.balancing.regularizers.npt:NPT",
    "learned text features spread like a simplex, and images aligned with the text features of their class",
    paper="Zhu et al., Understanding Prompt Tuning for V-L Models Through the Lens of Neural Collapse, "
    "arXiv 2306.15955, 2023",
    status="reconstruction",
    needs=frozenset({"text.learned"}),
)
REGULARIZERS.add(
    "cpt",
    f"{_PKG}.balancing.regularizers.cpt:CPT",
    "a simplex within each cluster of related classes, and learned text features kept near the frozen ones",
    paper="Guo et al., Cluster-Aware Neural Collapse Prompt Tuning for Long-Tailed Generalization of Vision-Language "
    "Models, CVPR 2026",
    status="reconstruction",
    needs=frozenset({"text.learned"}),
)

# -- after training --------------------------------------------------------------------------------------------------
_DECOUPLING = "Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020"
SECOND_STAGES.add(
    "crt",
    f"{_PKG}.balancing.second_stages.crt:CRT",
    "a new linear classifier trained on class-balanced samples",
    paper=_DECOUPLING,
)
SECOND_STAGES.add(
    "lws",
    f"{_PKG}.balancing.second_stages.lws:LWS",
    "one learned scale per class on the frozen classifier",
    paper=_DECOUPLING,
)
SECOND_STAGES.add(
    "tau_norm",
    f"{_PKG}.balancing.second_stages.tau_norm:TauNorm",
    "the classifier's rows divided by a power of their norm, chosen on validation images",
    paper=_DECOUPLING,
)
SECOND_STAGES.add(
    "ncm",
    f"{_PKG}.balancing.second_stages.ncm:NCM",
    "the nearest class mean, by cosine or distance",
    paper=_DECOUPLING,
)
SECOND_STAGES.add(
    "disalign",
    f"{_PKG}.balancing.second_stages.disalign:DisAlign",
    "logits scaled and shifted per class, by an amount learned per image (distribution alignment)",
    paper="Zhang et al., Distribution Alignment: A Unified Framework for Long-tail Visual Recognition, CVPR 2021",
)
SECOND_STAGES.add(
    "marc",
    f"{_PKG}.balancing.second_stages.marc:MARC",
    "logits scaled per class and shifted in units of the classifier's norms (margin calibration)",
    paper="Wang et al., Margin Calibration for Long-Tailed Visual Recognition, ACML 2022",
)
SECOND_STAGES.add(
    "expert_aggregation",
    f"{_PKG}.balancing.second_stages.expert_aggregation:ExpertAggregation",
    "expert weights under which the predictions for two views of each test image agree best",
    paper="Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition, "
    "NeurIPS 2022",
    needs=frozenset({"experts"}),
)
POST_HOC.add(
    "logit_adjustment",
    f"{_PKG}.balancing.post_hoc.logit_adjustment:LogitAdjustment",
    "logits minus tau times the log prior, with tau chosen on validation images",
    paper="Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021",
)
POST_HOC.add(
    "prior_shift",
    f"{_PKG}.balancing.post_hoc.prior_shift:PriorShift",
    "logits converted from the prior that they contain to any other",
    paper="Saerens et al., Adjusting the Outputs of a Classifier to New a Priori Probabilities: A Simple Procedure, "
    "Neural Computation 2002",
)
POST_HOC.add(
    "temperature",
    f"{_PKG}.balancing.post_hoc.temperature:Temperature",
    "confidence calibrated over all classes or per group, with unchanged predictions",
    paper="Guo et al., On Calibration of Modern Neural Networks, ICML 2017",
)

# -- tuning ----------------------------------------------------------------------------------------------------------
TUNINGS.add(
    "zero_shot",
    f"{_PKG}.tuning.zero_shot:ZeroShot",
    "no training",
    needs=frozenset({"names"}),
    provides=frozenset({"names.new"}),
)
TUNINGS.add(
    "linear_probe",
    f"{_PKG}.tuning.linear_probe:LinearProbe",
    "training of the head on frozen towers",
    needs=frozenset({"trained"}),
    provides=frozenset({"training"}),
)
TUNINGS.add(
    "prompt",
    "",
    "training of a prompt in one or both towers; `method` names the method",
    methods=PROMPTS,
    needs=frozenset({"names", "text", "shared_space"}),
    provides=frozenset({"training"}),
)
TUNINGS.add(
    "peft",
    f"{_PKG}.tuning.peft.tuning:PeftTuning",
    "training of a small part of the image tower, or of modules added to it; `method` names the method",
    methods=PEFT,
    provides=frozenset({"training", "tower.trained", "embedding.learned"}),
)


def _prompt_provides(section: Mapping[str, Any]) -> frozenset[str]:
    return frozenset({"text.learned"} | _if(not section["csc"], "names.new"))


# -- prompt methods --------------------------------------------------------------------------------------------------
PROMPTS.add(
    "coop",
    f"{_PKG}.tuning.prompt.coop:CoOp",
    "learned vectors in place of the words around the class name, shared or one set per class",
    paper="Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022",
    provides=_prompt_provides,
)
PROMPTS.add(
    "cocoop",
    f"{_PKG}.tuning.prompt.cocoop:CoCoOp",
    "CoOp with a small network that shifts the context for each image",
    paper="Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022",
    provides=frozenset({"text.learned", "names.new"}),
)
PROMPTS.add(
    "kgcoop",
    f"{_PKG}.tuning.prompt.kgcoop:KgCoOp",
    "CoOp kept near the text features of a plain sentence",
    paper="Yao et al., Visual-Language Prompt Tuning with Knowledge-Guided Context Optimization, CVPR 2023",
    provides=_prompt_provides,
)
PROMPTS.add(
    "prograd",
    f"{_PKG}.tuning.prompt.prograd:ProGradTuning",
    "CoOp with gradients that do not oppose the zero-shot model",
    paper="Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023",
    provides=_prompt_provides,
)
PROMPTS.add(
    "vpt",
    f"{_PKG}.tuning.prompt.vpt:VPT",
    "learned tokens inserted among those of the image, with the zero-shot classifier",
    paper="Jia et al., Visual Prompt Tuning, ECCV 2022",
    needs=frozenset({"tokens"}),
    provides=frozenset({"embedding.learned", "names.new"}),
)
PROMPTS.add(
    "ivlp",
    f"{_PKG}.tuning.prompt.ivlp:IVLP",
    "deep prompts in both towers, learned independently",
    paper="Rasheed et al., Fine-tuned CLIP Models are Efficient Video Learners, CVPR 2023",
    needs=frozenset({"tokens"}),
    provides=frozenset({"embedding.learned", "text.learned", "names.new"}),
)
PROMPTS.add(
    "maple",
    f"{_PKG}.tuning.prompt.maple:MaPLe",
    "deep prompts in both towers; those of the image are linear functions of those of the text",
    paper="Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023",
    needs=frozenset({"tokens"}),
    provides=frozenset({"embedding.learned", "text.learned", "names.new"}),
)
PROMPTS.add(
    "promptsrc",
    f"{_PKG}.tuning.prompt.promptsrc:PromptSRC",
    "IVLP kept near the frozen model, with prompts averaged over the epochs",
    paper="Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023",
    needs=frozenset({"tokens"}),
    provides=frozenset({"embedding.learned", "text.learned", "names.new"}),
)

# -- parameter-efficient methods -------------------------------------------------------------------------------------
TUNINGS.add(
    "full",
    f"{_PKG}.tuning.peft.tuning:FullTuning",
    "training of the whole image tower, optionally kept near the frozen one by a KL term",
    paper="Liu et al., Fully Fine-tuned CLIP Models are Efficient Few-Shot Learners, 2024",
    needs=lambda section: frozenset(_if(section["kl"] > 0, "start")),
    provides=frozenset({"training", "tower.trained", "embedding.learned"}),
)
PEFT.add(
    "adaptformer",
    f"{_PKG}.tuning.peft.adaptformer:AdaptFormer",
    "a bottleneck parallel to the MLP of every block, whose width follows the number of classes (LIFT)",
    paper="Shi et al., Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts, ICML 2024",
)
PEFT.add(
    "adapter",
    f"{_PKG}.tuning.peft.adapter:Adapter",
    "a bottleneck after the MLP of every block",
    paper="Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019",
)
PEFT.add(
    "lora",
    f"{_PKG}.tuning.peft.lora:LoRA",
    "a low-rank change to the query and value matrices",
    paper="Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022",
)
PEFT.add(
    "ssf",
    f"{_PKG}.tuning.peft.ssf:SSF",
    "a scale and a shift after every norm and matrix",
    paper="Lian et al., Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning, NeurIPS 2022",
)
PEFT.add(
    "vpt",
    f"{_PKG}.tuning.peft.vpt:VPT",
    "learned tokens inserted among those of the image, in every block or only in the first",
    paper="Jia et al., Visual Prompt Tuning, ECCV 2022",
)
PEFT.add(
    "bitfit",
    f"{_PKG}.tuning.peft.bitfit:BitFit",
    "only the biases",
    paper="Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
    "Language-models, ACL 2022",
)
PEFT.add(
    "layernorm",
    f"{_PKG}.tuning.peft.layernorm:LayerNorm",
    "only the layer norms",
    paper="Basu et al., Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning, AAAI 2024",
)
PEFT.add(
    "random_mask",
    f"{_PKG}.tuning.peft.random_mask:RandomMask",
    "a fixed random share of the weights",
    paper="Xu and Zhang, Random Masking Finds Winning Tickets for Parameter Efficient Fine-tuning, ICML 2024",
)
PEFT.add(
    "partial",
    f"{_PKG}.tuning.peft.partial:Partial",
    "only the last blocks, or the last stages of a convolutional network",
)

# -- gradient transforms ---------------------------------------------------------------------------------------------
_SUBPT = "Ma et al., Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models, TCSVT 2023"
GRADIENTS.add(
    "subspace",
    f"{_PKG}.balancing.gradients.subspace:Subspace",
    "training within the subspace that a first pass spans (SubPT)",
    paper=_SUBPT,
)
GRADIENTS.add(
    "prograd",
    f"{_PKG}.balancing.gradients.prograd:ProGrad",
    "gradients without the component that opposes the zero-shot model",
    paper="Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023",
    needs=frozenset({"text.learned"}),
)

# -- optimizers and schedules ----------------------------------------------------------------------------------------
OPTIMIZERS.add("sgd", f"{_PKG}.training.optimizers:sgd", "torch.optim.SGD with momentum")
OPTIMIZERS.add("adamw", f"{_PKG}.training.optimizers:adamw", "torch.optim.AdamW")
SCHEDULES.add("constant", f"{_PKG}.training.schedules:constant", "constant learning rate after an optional warm-up")
SCHEDULES.add("cosine", f"{_PKG}.training.schedules:cosine", "cosine decay to lr_min after an optional warm-up")
SCHEDULES.add(
    "cosine_constant_warmup",
    f"{_PKG}.training.schedules:cosine_constant_warmup",
    "cosine decay to lr_min after a warm-up at one low rate, as in the prompt papers",
)
SCHEDULES.add(
    "partial_cosine",
    f"{_PKG}.training.schedules:partial_cosine",
    "the first part of a quarter cosine after an optional warm-up, as in FixMatch and Imbalance-VLM",
)
SCHEDULES.add("multistep", f"{_PKG}.training.schedules:multistep", "learning rate that drops at given epochs")

# -- evaluation ------------------------------------------------------------------------------------------------------
EVALUATORS.add(
    "accuracy",
    f"{_PKG}.evaluation.accuracy:Accuracy",
    "accuracy over all images, over many, medium and few classes, and averaged over classes",
)
EVALUATORS.add(
    "calibration",
    f"{_PKG}.evaluation.calibration:Calibration",
    "calibration error and likelihood, over all images and per group",
    paper="Guo et al., On Calibration of Modern Neural Networks, ICML 2017",
)
EVALUATORS.add(
    "base_to_novel",
    f"{_PKG}.evaluation.base_to_novel:BaseToNovel",
    "accuracy on the classes that were left out of training, optionally over the epochs",
    paper="Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022",
    needs=frozenset({"names.new", "novel"}),
)
EVALUATORS.add(
    "transfer",
    f"{_PKG}.evaluation.transfer:Transfer",
    "accuracy on the classes and images of other datasets",
    paper="Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022",
    needs=frozenset({"names.new"}),
)
EVALUATORS.add(
    "geometry",
    f"{_PKG}.evaluation.geometry:Geometry",
    "neural collapse of the embeddings, and their angles to the text features",
    paper="Papyan et al., Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training, PNAS 2020",
)

REGISTRIES: dict[str, Registry] = {
    "datasets": DATASETS,
    "encoders": ENCODERS,
    "tunings": TUNINGS,
    "heads": HEADS,
    "losses": LOSSES,
    "samplers": SAMPLERS,
    "regularizers": REGULARIZERS,
    "gradients": GRADIENTS,
    "second_stages": SECOND_STAGES,
    "post_hoc": POST_HOC,
    "prompts": PROMPTS,
    "peft": PEFT,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "evaluators": EVALUATORS,
}


@cache
def load_plugins() -> None:
    """Import the modules that other packages name under the entry point group `imbalance_vlm.plugins`, once.

    Raises:
        InputError: a plug-in that cannot be imported or that registers a taken name; all its registrations are undone.
    """
    for point in entry_points(group="imbalance_vlm.plugins"):
        before = {registry: list(registry) for registry in REGISTRIES.values()}
        try:
            point.load()
        except Exception as error:
            for registry, entries in before.items():
                registry.reset(entries)
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            package = f" of package '{point.dist.name}'" if point.dist else ""
            plugin = f"plug-in '{point.name}'{package}"
            raise InputError(
                f"{plugin} cannot be loaded from '{point.value}': {reason}; repair or uninstall it"
            ) from error
