"""What every head must do, over the registry; and what is particular to each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm import InputError, catalogue
from imbalance_vlm.heads.factory import class_mean_directions, create_head, reads_tokens, text_directions

WIDTH, CLASSES, BATCH, TOKENS = 8, 5, 6, 4
HEADS = catalogue.HEADS.names()


def directions(seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def features_for(name: str) -> Tensor:
    shape = (BATCH, TOKENS, WIDTH) if reads_tokens(name) else (BATCH, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_head(name, WIDTH, CLASSES, directions(seed)).eval()


@pytest.mark.parametrize("name", HEADS)
def test_gives_one_logit_a_class(name: str) -> None:
    assert make(name)(features_for(name)).shape == (BATCH, CLASSES)


@pytest.mark.parametrize("name", HEADS)
def test_state_dict_round_trip(name: str) -> None:
    head, other = make(name, 0), make(name, 1)
    features = features_for(name)
    assert not torch.equal(head(features), other(features))
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other(features), head(features), rtol=0, atol=0)


@pytest.mark.parametrize("name", HEADS)
def test_gradient_reaches_every_trainable_parameter(name: str) -> None:
    head = make(name).train()
    logits = head(features_for(name))
    trainable = {key: p for key, p in head.named_parameters() if p.requires_grad}
    if not trainable:
        assert not logits.requires_grad
        return
    of_each = logits if logits.ndim == 2 else logits.mean(1)  # experts give (B, 3, C) in training
    F.cross_entropy(of_each, torch.arange(BATCH) % CLASSES).backward()
    without = [key for key, p in trainable.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@pytest.mark.parametrize("name", HEADS)
def test_starts_from_the_directions_it_is_given(name: str) -> None:
    given = directions(3)
    state = create_head(name, WIDTH, CLASSES, given).state_dict()
    assert any(value.shape == given.shape and torch.equal(value, given) for value in state.values())


@pytest.mark.parametrize("name", HEADS)
def test_the_directions_are_copied(name: str) -> None:
    given = directions(3)
    head = create_head(name, WIDTH, CLASSES, given).eval()
    before = head(features_for(name))
    given.zero_()
    assert torch.equal(head(features_for(name)), before)


@pytest.mark.parametrize("name", [name for name in HEADS if "init" in catalogue.HEADS.get(name).settings()])
def test_a_random_start_differs_with_the_seed_alone(name: str) -> None:
    def start(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(create_head(name, WIDTH, CLASSES, init="random").state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(start(0), start(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(start(0), start(1), strict=True))


def test_cosine_is_the_scaled_cosine() -> None:
    features, weight = features_for("cosine"), directions()
    head = create_head("cosine", WIDTH, CLASSES, weight, scale=12.0)
    wanted = [[12.0 * float(F.cosine_similarity(f, w, dim=0)) for w in weight] for f in features]
    torch.testing.assert_close(head(features), torch.tensor(wanted))
    assert not head.log_scale.requires_grad
    assert create_head("cosine", WIDTH, CLASSES, weight, learn_scale=True).log_scale.requires_grad


def test_linear_reads_features_of_any_length_alike_when_it_normalises() -> None:
    features = features_for("linear")
    head = make("linear")
    torch.testing.assert_close(head(7 * features), head(features))
    raw = create_head("linear", WIDTH, CLASSES, directions(), normalise=False, bias=False)
    torch.testing.assert_close(raw(features), features @ directions().t())


def test_text_head_has_nothing_to_train_and_needs_text_features() -> None:
    head = make("text")
    assert not list(head.parameters())
    assert "weight" in head.state_dict()
    with pytest.raises(InputError, match="directions"):
        create_head("text", WIDTH, CLASSES)


@pytest.mark.parametrize(("width", "millions"), [(768, 8.87), (1024, 15.76)])
def test_decoder_has_the_published_number_of_parameters(width: int, millions: float) -> None:
    with torch.device("meta"):
        head = create_head("decoder", width, 1000)
    blocks = sum(p.numel() for key, p in head.named_parameters() if not key.startswith("layer."))
    assert round(blocks / 1e6, 2) == millions


def test_decoder_reads_the_class_token_after_attention_to_all() -> None:
    head, tokens = make("decoder"), features_for("decoder")
    changed = tokens.clone()
    changed[:, -1] = -changed[:, -1]
    assert not torch.allclose(head(changed), head(tokens))
    shuffled = tokens[:, [0, 3, 1, 2]]  # no positions of its own
    torch.testing.assert_close(head(shuffled), head(tokens), rtol=1e-4, atol=1e-5)


def test_decoder_refuses_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(InputError, match="`heads` must divide the width of the tokens, 8, got 3"):
        create_head("decoder", WIDTH, CLASSES, heads=3)


class Rows:
    """A source that holds its features."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, rows: list[Tensor], epoch: int = 0) -> object:
        return ((self.features[chosen], self.labels[chosen]) for chosen in rows)


def test_class_means_are_means_of_unit_features() -> None:
    features, labels = 5 * torch.rand(9, WIDTH) + 0.1, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 4])
    got = class_mean_directions(Rows(features, labels), CLASSES, batch_size=4)
    for label in (0, 1, 2, 4):
        mean = sum(f / f.norm() for f, y in zip(features, labels, strict=True) if y == label)
        torch.testing.assert_close(got[label], mean / mean.norm())
    assert torch.isfinite(got[3]).all(), "a class without images has a direction too"
    tokens = torch.stack([features, torch.zeros_like(features)], dim=1)
    torch.testing.assert_close(class_mean_directions(Rows(tokens, labels), CLASSES), got)


def test_unknown_heads_and_settings_are_refused_in_words() -> None:
    with pytest.raises(InputError, match="unknown head 'cosin'. Did you mean 'cosine'"):
        create_head("cosin", WIDTH, CLASSES)
    with pytest.raises(InputError, match="`scale` must be a number > 0, got 0"):
        create_head("cosine", WIDTH, CLASSES, scale=0)


@pytest.mark.parametrize("name", ["cosine", "linear", "decoder"])
def test_a_start_that_needs_directions_is_refused_without_them(name: str) -> None:
    with pytest.raises(InputError, match="init 'text' needs `directions`"):
        create_head(name, WIDTH, CLASSES, init="text")


class Reader:
    """A text tower that gives the length of each name."""

    def text_features(self, names: list[str], templates: list[str]) -> Tensor:
        return torch.tensor([[float(len(name))] for name in names])

    def text_in(self, kind: str, text: Tensor) -> Tensor:
        return text


def test_numbers_as_class_names_are_said_before_a_text_tower_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    text_directions(Reader(), "embedding", ["cat", "7"], ["{}"])  # type: ignore[arg-type]
    assert not capsys.readouterr().err
    text_directions(Reader(), "embedding", ["0", "7"], ["{}"])  # type: ignore[arg-type]
    assert "the class names are numbers" in capsys.readouterr().err
