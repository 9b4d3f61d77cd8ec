"""Weights that would have to be downloaded: a clear error before any attempt, with the command that fetches them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
from huggingface_hub import constants

from imbalance_vlm import InputError
from imbalance_vlm.encoders import hub
from imbalance_vlm.encoders.factory import create_encoder


@pytest.fixture(autouse=True)
def _empty_cache_and_no_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def download(*settings: Any, **more: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(open_clip, "create_model", download)
    monkeypatch.setattr(timm, "create_model", download)


@pytest.fixture
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Allows downloads, from a hub at this address."""

    def configure(address: str) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)

    return configure


NOBODY = "http://127.0.0.1:1"
"""An address at which nothing answers."""


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


@pytest.mark.parametrize(("settings", "command", "place"), CASES)
def test_a_hub_out_of_reach_is_refused_with_the_command(
    settings: dict[str, Any], command: str, place: str, hub_at: Callable[[str], None]
) -> None:
    hub_at(NOBODY)
    refused("no answer within 5 seconds", command, place, **settings)


def test_cached_weights_need_no_request(hub_at: Callable[[str], None], tmp_path: Path) -> None:
    hub_at(NOBODY)
    repository = tmp_path / "hub" / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("123")
    (repository / "snapshots" / "123").mkdir(parents=True)
    (repository / "snapshots" / "123" / "open_clip_pytorch_model.bin").touch()
    hub.require_repository("a/b", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"], "weights", "")


def test_random_weights_need_no_request() -> None:
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


def test_any_answer_is_an_answer(hub_at: Callable[[str], None], server: str) -> None:
    hub_at(server)
    assert hub.hub_answers()


def test_a_silent_hub_is_given_up_on(hub_at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a firewall that drops packets, libraries wait for minutes."""
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hub_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert not hub.hub_answers()


@pytest.mark.parametrize(("value", "forbidden"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_environment_variable_that_forbids_downloads(
    monkeypatch: pytest.MonkeyPatch, value: str, forbidden: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub.offline() is forbidden
