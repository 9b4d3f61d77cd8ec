"""TorchScript archives are read as tensors, and none of their code is run."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import InputError
from imbalance_vlm.encoders.formats import read_weights
from imbalance_vlm.encoders.torchscript import read_torchscript


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        yield


class Tower(nn.Module):
    """Shared and transposed weights, buffers, a tensor that is neither, and several modules of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("vocab_size", torch.tensor(49408))
        self.register_buffer("empty", torch.zeros(0, 4))
        self.mask = torch.ones(2, 2)
        self.heads = 3
        self.blocks = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.blocks[0].weight
        self.norm = nn.BatchNorm1d(2)
        self.turned = nn.Parameter(torch.randn(3, 5).t())

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(x)) @ self.mask + self.heads


class Malicious(nn.Module):
    """Creates a file named `owned` in the working folder when it is restored."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0] + torch.from_file("owned", shared=True, size=2)
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Malicious()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("half", [True, False], ids=["fp16", "fp32"])
@pytest.mark.parametrize("traced", [True, False], ids=["traced", "scripted"])
def test_an_archive_holds_the_tensors_that_torch_reads(half: bool, traced: bool, tmp_path: Path) -> None:
    tower = Tower().eval()
    tower = tower.half() if half else tower
    example = torch.ones(4, 2, dtype=torch.float16 if half else torch.float32)
    tower.mask = tower.mask.to(example.dtype)
    file = tmp_path / "tower.pt"
    (torch.jit.trace(tower, example) if traced else torch.jit.script(tower)).save(str(file))
    state, expected = read_torchscript(file), torch.jit.load(str(file)).state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert (state[name].dtype, state[name].shape) == (value.dtype, value.shape), name
        assert state[name].contiguous().numpy().tobytes() == value.contiguous().numpy().tobytes(), name


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.weights", "folder/model.pth"])
@pytest.mark.parametrize("module", [Malicious, Outer])
def test_the_code_of_an_archive_is_not_run(module: type[nn.Module], name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    torch.jit.script(module()).save(str(file))
    with pytest.raises(InputError, match=r"code, which is not run; .* save its state_dict\(\) as a .safetensors file"):
        read_weights(file.parent if file.parent != tmp_path else file)
    assert not Path("owned").exists()


def test_the_malicious_archive_would_have_run(tmp_path: Path) -> None:
    torch.jit.script(Malicious()).save(str(tmp_path / "w.pt"))
    torch.jit.load(str(tmp_path / "w.pt"))
    assert Path("owned").exists()


def rewritten(file: Path, record: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A copy of an archive with other content in one record."""
    copy = file.with_name("rewritten.pt")
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            changed = name.endswith(f"/{record}")
            target.writestr(name, content if changed else source.read(name), compression if changed else None)
    return copy


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"cos\nsystem\n(S'touch owned'\ntR.", "an object of os.system"),
        (b'c__builtin__\neval\n(S\'open("owned", "w")\'\ntR.', "an object of .*eval"),
        (b"ctorch._utils\n_rebuild_wrapper_subclass\n.", "an object of torch._utils"),
        (b"c__torch__\nTower\n)\x81c__torch__\nTower\n)\x81b.", "can only be restored"),
        (b"}.", "holds a dict"),
    ],
)
def test_a_forged_archive_is_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "w.pt"))
    with zipfile.ZipFile(tmp_path / "w.pt", "a") as archive:
        archive.writestr("w/code/__torch__.py", "class Tower(Module):\n  __parameters__ = []\n")
    with pytest.raises(InputError, match=message):
        read_weights(rewritten(tmp_path / "w.pt", "data.pkl", pickled))
    assert not Path("owned").exists()


def test_an_archive_whose_records_do_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(file))
    with pytest.raises(InputError, match="storage 0 should hold 4 numbers, and holds 2"):
        read_weights(rewritten(file, "data/0", bytes(8)))
    with pytest.raises(InputError, match="data/0 is compressed"):
        read_weights(rewritten(file, "data/0", bytes(16), zipfile.ZIP_DEFLATED))
    shutil.copy(file, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="could not be read as weights"):
        read_weights(tmp_path / "cut.pt")
