"""Teachers stay frozen, whatever is done to what contains them, and their weights files are checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tinykd.errors import DataError
from tinykd.models import build_model
from tinykd.models.teacher import Teacher, load_weights


def test_teacher_stays_in_eval_mode_and_without_gradient() -> None:
    """`.train()` on a teacher or on what contains it changes nothing; batch norm does not drift."""
    teacher = Teacher(build_model("resnet20", 10, 32))
    container = nn.ModuleList([teacher]).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    teacher(torch.randn(4, 3, 32, 32))
    assert container.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_own_normalisation_equals_feeding_the_pixels() -> None:
    """With its own mean and deviation a teacher sees what it would see from the 0..1 pixels."""
    teacher = Teacher(nn.Identity(), mean_level=121, std_level=64.0, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    pixels = torch.randint(0, 256, (2, 3, 5, 5)).float()
    expected = (pixels / 255 - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(
        3, 1, 1
    )
    torch.testing.assert_close(teacher((pixels - 121) / 64.0), expected, rtol=1e-5, atol=1e-5)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(Teacher(nn.Identity(), 121, 64.0)(x), x)


@pytest.mark.parametrize("form", ["safetensors", "th", "wrapped"])
def test_weights_load_from_every_form(form: str, tmp_path: Path) -> None:
    """A .safetensors file, a state dict, and one wrapped in {"state_dict": {"module.x": ...}} give the same model."""
    source, target = build_model("resnet20", 10, 32), build_model("resnet20", 10, 32)
    state = source.state_dict()
    path = tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'th'}"
    if form == "safetensors":
        save_file(state, path)
    elif form == "th":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 93.4}, path)
    load_weights(target, path)
    assert all(torch.equal(value, state[name]) for name, value in target.state_dict().items())


def test_misfitting_weights_are_refused_in_full(tmp_path: Path) -> None:
    """Missing, unknown and misshapen tensors are all named, and the model keeps its own weights."""
    model = build_model("resnet20", 10, 32)
    before = model.state_dict()["conv1.weight"].clone()
    state = dict(model.state_dict())
    state["linear.weight"] = torch.zeros(100, 64)
    state["extra"] = state.pop("bn1.weight")
    state["conv1.weight"] = torch.zeros_like(state["conv1.weight"])
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"1 missing \(bn1.weight\); 1 unknown \(extra\); 1 of another shape") as caught:
        load_weights(model, tmp_path / "w.pt")
    assert "(100, 64) instead of (10, 64)" in caught.value.message
    assert torch.equal(model.state_dict()["conv1.weight"], before)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"\x80\x02cos\nsystem\n(S'true'\ntR."])
@pytest.mark.parametrize("suffix", ["th", "safetensors"])
def test_broken_or_hostile_weights_are_data_errors(content: bytes, suffix: str, tmp_path: Path) -> None:
    """Empty files, noise and pickles with code in them are refused by name and never run."""
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_weights(build_model("resnet20", 10, 32), path)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    """A tensor alone is no state dict."""
    torch.save([torch.zeros(3)], tmp_path / "w.pt")
    with pytest.raises(DataError, match="no state dict"):
        load_weights(build_model("resnet20", 10, 32), tmp_path / "w.pt")
