"""The regulariser of LADE."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.losses.lade import lade_regulariser
from tests.balancing.losses import oracles
from tests.balancing.losses.oracles import MILD


def test_lade_regularises_raw_logits() -> None:
    """Adding the log prior first, as some copies of the code do, gives another number."""
    rng = np.random.default_rng(5)
    logits, targets = rng.normal(0, 2, (8, 5)), rng.integers(0, 5, 8)
    prior = np.array(MILD) / sum(MILD)
    z, y, log_prior = torch.from_numpy(logits), torch.from_numpy(targets), torch.from_numpy(np.log(prior))
    wanted = oracles.lade_r(logits.tolist(), targets.tolist(), MILD, 0.1)
    shifted = oracles.lade_r((logits + np.log(prior)).tolist(), targets.tolist(), MILD, 0.1)
    assert float(lade_regulariser(z, y, log_prior, 0.1)) == pytest.approx(wanted, rel=1e-10)
    assert abs(wanted - shifted) > 0.05
    difference = create_loss("lade", MILD, alpha=1.0)(z, y) - create_loss("balanced_softmax", MILD)(z, y)
    assert float(difference) == pytest.approx(wanted, rel=1e-10)


def test_lade_counts_a_large_batch_in_bfloat16() -> None:
    """A class with 600 samples in the batch, where bfloat16 cannot count past 256."""
    logits, targets = torch.tensor([[1.5, 0.0]]).repeat(600, 1), torch.zeros(600, dtype=torch.int64)
    log_prior = torch.tensor([0.5, 0.5]).log()
    wide, narrow = (lade_regulariser(z, targets, log_prior, 0.1) for z in (logits, logits.bfloat16()))
    assert narrow.dtype == torch.bfloat16
    assert float(narrow) == pytest.approx(float(wide), rel=0.005)
