"""Record 20 steps of the released code of prompt methods: python -m tools.parity.coop_family METHOD SOURCE DASSL

METHOD is one of the functions below, SOURCE the folder of the released code with `trainers/` and `clip/` in it, DASSL
the folder of the Dassl.pytorch that it was released with. Needs the packages of their requirements (yacs, ftfy, gdown,
tabulate, wilds), which the project does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.parity.released import Recording, prepare_clip, run_dassl_trainer


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


METHODS = {function.__name__: function for function in (coop, cocoop, kgcoop, prograd)}

if __name__ == "__main__":
    name, source, dassl = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    prepare_clip(source, dassl)
    METHODS[name](source).write()
