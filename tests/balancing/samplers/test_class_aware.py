"""Class-aware sampling."""

from __future__ import annotations

from tests.balancing.samplers.shares import LABELS, sampler


def test_class_aware_takes_the_classes_in_turn_k_images_each() -> None:
    for k in (1, 3, 4):
        order = sampler("class_aware", LABELS, k=k)
        turns = LABELS[order.epoch(0, 1)].split(k)
        assert all(len(turn.unique()) == 1 for turn in turns)
        visits = [int(turn[0]) for turn in turns]
        for begin in range(0, len(visits) - 2, 3):  # each pass visits each class once
            assert sorted(visits[begin : begin + 3]) == [0, 1, 2]
        assert len({tuple(visits[begin : begin + 3]) for begin in range(0, len(visits) - 2, 3)}) > 1


def test_class_aware_repeats_no_image_before_all_were_shown() -> None:
    order = sampler("class_aware", LABELS, k=4)
    rows = order.epoch(0, 1)
    for label in range(3):
        of_class = rows[LABELS[rows] == label]
        size = int((label == LABELS).sum())
        for begin in range(0, len(of_class), size):
            round_of_class = of_class[begin : begin + size]
            assert len(round_of_class.unique()) == len(round_of_class)
