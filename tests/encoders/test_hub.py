"""Weights that would have to be downloaded: a clear error before any attempt, with the command that fetches them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import timm
from huggingface_hub import constants

from imbalance_vlm import InputError
from imbalance_vlm.encoders import hub
from imbalance_vlm.encoders.factory import create_encoder


@pytest.fixture(autouse=True)
def _empty_cache_and_no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *settings: None)

    def tried(*settings: Any, **more: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(open_clip, "create_model", tried)
    monkeypatch.setattr(timm, "create_model", tried)


@pytest.fixture
def _no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(hub, "hub_answers", lambda: False)


def refused(*words: str, **settings: Any) -> None:
    with pytest.raises(InputError) as error:
        create_encoder(settings.pop("name"), **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


CASES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
        "hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K --local-dir CLIP-ViT-B-32-laion2B-s34B-b79K",
        "set encoder.pretrained=/path/to/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ),
    (
        {"name": "ViT-B-16-quickgelu", "pretrained": "openai"},
        "hf download timm/vit_base_patch16_clip_224.openai --local-dir",
        "set encoder.pretrained=/path/to/vit_base_patch16_clip_224.openai",
    ),
    (
        {"name": "ViTamin-S", "pretrained": "datacomp1b"},
        "hf download jienengchen/ViTamin-S --local-dir",
        "set encoder.pretrained=/path/to/ViTamin-S",
    ),
    (
        {"name": "hf-hub:some/model"},
        "hf download some/model --local-dir model",
        "set encoder.name=local-dir:/path/to/model",
    ),
    (
        {"name": "timm:resnet18"},
        "hf download timm/resnet18.a1_in1k --local-dir",
        "set encoder.pretrained=/path/to/resnet18.a1_in1k/model.safetensors",
    ),
]


@pytest.mark.parametrize(("settings", "command", "place"), CASES)
def test_offline_is_respected_and_the_error_has_the_command(settings: dict[str, Any], command: str, place: str) -> None:
    refused("HF_HUB_OFFLINE is set", command, place, **settings)


@pytest.mark.usefixtures("_no_answer")
@pytest.mark.parametrize(("settings", "command", "place"), CASES)
def test_a_hub_out_of_reach_is_refused_with_the_command(settings: dict[str, Any], command: str, place: str) -> None:
    refused("no answer within 5 seconds", command, place, **settings)


def test_cached_weights_need_no_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requests = []
    monkeypatch.setattr(hub, "hub_answers", lambda: requests.append(1))
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, file: "/there" if file.endswith(".bin") else None
    )
    hub.require_repository("a/b", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"], "weights", "")
    assert not requests


def test_random_weights_need_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="a download was tried"):  # by open_clip, without a request to the hub before
        create_encoder("ViT-B-32", pretrained="random")


class Missing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(404)

    def log_message(self, *settings: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Missing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_any_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server)
    assert hub.hub_answers()


def test_a_silent_hub_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a firewall that drops packets, libraries wait for minutes."""
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert not hub.hub_answers()


@pytest.mark.parametrize(("value", "forbidden"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_environment_variable_that_forbids_downloads(
    monkeypatch: pytest.MonkeyPatch, value: str, forbidden: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.offline() is forbidden
