"""Record 20 steps of the released code of prompt methods: python -m tools.parity.coop_family METHOD SOURCE DASSL

METHOD is one of the functions below, SOURCE the folder of the released code with `trainers/` and `clip/` in it, DASSL
the folder of the Dassl.pytorch that it was released with. Needs the packages of their requirements (yacs, ftfy, gdown,
tabulate, wilds), which the project does not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.parity import problem
from tools.parity.released import (
    Recording,
    dassl_config,
    prepare_clip,
    released_clip,
    replace_in,
    run_dassl_trainer,
)


def coop(source: Path) -> Recording:
    import trainers.coop as released

    recording = Recording("coop", "KaiyangZhou/CoOp", source, "trainers/coop.py")
    for position in ("end", "middle", "front"):
        settings = {"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": position}
        run_dassl_trainer(recording, f"position {position}", released, released.CoOp, {"TRAINER.COOP": settings})
    settings = {"N_CTX": 4, "CTX_INIT": "", "CSC": True, "CLASS_TOKEN_POSITION": "end"}
    run_dassl_trainer(recording, "context per class", released, released.CoOp, {"TRAINER.COOP": settings})
    return recording


def cocoop(source: Path) -> Recording:
    import trainers.cocoop as released

    recording = Recording("cocoop", "KaiyangZhou/CoOp", source, "trainers/cocoop.py")
    settings = {"N_CTX": 4, "CTX_INIT": ""}
    run_dassl_trainer(
        recording, "default", released, released.CoCoOp, {"TRAINER.COCOOP": settings, "OPTIM": {"LR": 0.002}}
    )
    return recording


def kgcoop(source: Path) -> Recording:
    import trainers.kgcoop as released

    recording = Recording("kgcoop", "htyao89/KgCoOp", source, "KgCoOp/trainers/kgcoop.py")
    settings = {"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end", "W": 8.0}
    run_dassl_trainer(recording, "default", released, released.KgCoOp, {"TRAINER.COOP": settings})
    return recording


def prograd(source: Path) -> Recording:
    import trainers.prograd as released

    recording = Recording("prograd", "BeierZhu/Prompt-align", source, "ProGrad.public/trainers/prograd.py")
    settings = {"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end"}
    changes = {"TRAINER.COOP": settings, "LOSS": {"NAME": "prograd", "T": 1.0, "LAMBDA": 1.0}}
    run_dassl_trainer(
        recording, "default", released, released.ProGrad, changes, loss=lambda summary: summary["xe_loss"]
    )
    return recording


def maple(source: Path) -> Recording:
    replace_in(source / "trainers" / "maple.py", {".half()": "", "768": "192", "512": "96"})  # widths of the problem
    import trainers.maple as released

    recording = Recording("maple", "muzairkhattak/multimodal-prompt-learning", source, "trainers/maple.py")
    settings = {"N_CTX": 2, "CTX_INIT": "", "PROMPT_DEPTH": 3}
    details = {"trainer": "MaPLe", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
    details |= {"maple_length": 2}
    run_dassl_trainer(
        recording,
        "depth 3",
        released,
        released.MaPLe,
        {"TRAINER.MAPLE": settings, "OPTIM": {"LR": 0.002}},
        build=lambda *_: released_clip(released.clip.build_model, details),
    )
    return recording


def ivlp(source: Path) -> Recording:
    import trainers.independentVL

    released = trainers.independentVL

    recording = Recording("ivlp", "muzairkhattak/multimodal-prompt-learning", source, "trainers/independentVL.py")
    settings = {"N_CTX_VISION": 2, "N_CTX_TEXT": 3, "CTX_INIT": "", "PROMPT_DEPTH_VISION": 3, "PROMPT_DEPTH_TEXT": 3}
    details = {"trainer": "IVLP", "vision_depth": 3, "language_depth": 3, "vision_ctx": 2, "language_ctx": 3}
    run_dassl_trainer(
        recording,
        "depth 3",
        released,
        released.IVLP,
        {"TRAINER.IVLP": settings},
        build=lambda *_: released_clip(released.clip.build_model, details),
    )
    return recording


def promptsrc(source: Path) -> Recording:
    replace_in(source / "trainers" / "promptsrc.py", {".half()": ""})
    import trainers.promptsrc as released

    recording = Recording("promptsrc", "muzairkhattak/PromptSRC", source, "trainers/promptsrc.py")
    settings = {"N_CTX_VISION": 2, "N_CTX_TEXT": 3, "CTX_INIT": "", "PROMPT_DEPTH_VISION": 3, "PROMPT_DEPTH_TEXT": 3}
    settings |= {"GPA_MEAN": 3, "GPA_STD": 1}
    prompted = {"trainer": "IVLP", "vision_depth": 3, "language_depth": 3, "vision_ctx": 2, "language_ctx": 3}
    frozen = {"trainer": "IVLP", "vision_depth": 0, "language_depth": 0, "vision_ctx": 0, "language_ctx": 0}
    run_dassl_trainer(
        recording,
        "depth 3",
        released,
        released.PromptSRC,
        {"TRAINER.PROMPTSRC": settings, "OPTIM": {"LR": 0.002}},
        build=lambda config, zero_shot=False: released_clip(
            released.clip.build_model, frozen if zero_shot else prompted
        ),
    )
    return recording


def nfl(source: Path) -> Recording:
    import trainers.coop_nfl as released
    import trainers.zsclip as zero_shot

    recording = Recording("nfl", "machengcheng2016/Subspace-Prompt-Learning", source, "CoOp/trainers/coop_nfl.py")
    released.load_clip_to_cpu = zero_shot.load_clip_to_cpu = lambda *_: released_clip(released.clip.build_model)
    ensemble = object.__new__(zero_shot.ZeroshotCLIP2)
    ensemble.cfg, ensemble.device = dassl_config({}), torch.device("cpu")
    ensemble.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=list(problem.NOVEL_NAMES)))
    ensemble.build_model()
    with tempfile.TemporaryDirectory() as folder:
        names, features = Path(folder) / "names.pth", Path(folder) / "features.pth"
        torch.save(list(problem.NOVEL_NAMES), names)
        torch.save(ensemble.text_features, features)
        settings = {"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end"}
        files = {"CLASSNAMES_NFL": str(names), "TEXT_FEATURES_NFL": str(features)}
        run_dassl_trainer(
            recording,
            "default",
            released,
            released.CoOp_nfl,
            {"TRAINER.COOP": settings, "LOSS": {"LOSS_TYPE": "cosine", "LAMBDA": 1.0}, "": files},
            loss=lambda summary: summary["xe_loss"] + summary["nfl_loss"],
        )
    return recording


def subpt(source: Path) -> Recording:
    """CoOp without weight decay, then SubPT in the subspace of its first three epochs."""
    import trainers.coop as first
    import trainers.coop_sub as released

    recording = Recording("subpt", "machengcheng2016/Subspace-Prompt-Learning", source, "CoOp/trainers/coop_sub.py")
    settings = {"N_CTX": 4, "CTX_INIT": "", "CSC": False, "CLASS_TOKEN_POSITION": "end"}
    changes: dict[str, dict[str, Any]] = {"TRAINER.COOP": settings, "OPTIM": {"WEIGHT_DECAY": 0.0}}
    contexts: list[torch.Tensor] = []

    def keep(trainer: Any) -> None:
        contexts.append(trainer.model.prompt_learner.ctx.detach().clone())

    run_dassl_trainer(recording, "first pass", first, first.CoOp, changes, after_epoch=keep)
    with tempfile.TemporaryDirectory() as folder:
        for number, context in enumerate(contexts, start=1):
            torch.save({"state_dict": {"ctx": context}}, Path(folder) / f"model.pth.tar-{number}")
        basis = Path(folder) / "basis.pth"
        command = [sys.executable, "compute_eigenvector.py", "--ckpt_path", folder, "--start", "1", "--finish", "3"]
        command += ["--save_name", str(basis), "--n_components", "2"]
        subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
        changes["TRAINER"] = {"U": str(basis)}
        run_dassl_trainer(recording, "T 3, r 2", released, released.CoOp_sub, changes)
    return recording


METHODS = {
    function.__name__: function for function in (coop, cocoop, kgcoop, prograd, maple, ivlp, promptsrc, nfl, subpt)
}

if __name__ == "__main__":
    name, source, dassl = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    prepare_clip(source, dassl)
    METHODS[name](source).write()
