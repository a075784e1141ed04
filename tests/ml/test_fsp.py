"""Flow of the solution procedure: golden values, bilinearity, pooling, and networks that do not fit."""

from __future__ import annotations

import pytest
import torch
from distill_support import F1, FB, FS, FT, GOLDEN, assert_golden, make_context, make_method, run_step, wave

from tinykd.distill import METHODS
from tinykd.distill.fsp import Fsp, flow, fsp_loss
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.train.stages import list_stages


def test_golden_values() -> None:
    """Flows of 3 and 4 channels: shape, first element, and the mean squared distance."""
    found = flow(FB, F1)
    assert list(found.shape) == GOLDEN["fsp_shape"]
    assert float(found[0, 0, 0]) == pytest.approx(GOLDEN["fsp_M00"], rel=1e-6)
    assert_golden(lambda a, b, c, d: fsp_loss((a, b), (c, d)), (FS, FT, FB, F1), GOLDEN["fsp_mean_sq"])


def test_flow_is_the_mean_over_pixels_of_products() -> None:
    """Element (i, j) is the mean over pixels of the first map's channel i times the second's channel j."""
    found = flow(FS, FT)
    for n, i, j in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        assert float(found[n, i, j]) == pytest.approx(float((FS[n, i] * FT[n, j]).mean()), rel=1e-12)
    assert torch.allclose(flow(2 * FS, -3 * FT), -6 * found, rtol=1e-12)


def test_pixels_may_be_permuted_in_both_maps() -> None:
    """The same permutation of the pixels of both maps changes nothing; of one alone it does."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    first, second = (x.flatten(2)[:, :, order].reshape(x.shape) for x in (FS, FT))
    assert torch.allclose(flow(first, second), flow(FS, FT), rtol=1e-12)
    assert not torch.allclose(flow(first, FT), flow(FS, FT), rtol=1e-3)


@pytest.mark.parametrize("larger", ["first", "second"])
def test_the_larger_map_of_a_pair_is_averaged_down(larger: str) -> None:
    """Maps of unequal sizes give (N, C1, C2) after average pooling of the larger."""
    large = wave((2, 3, 8, 8), 0.23, 0.4)
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    if larger == "first":
        assert flow(large, FT).shape == (2, 3, 4)
        assert torch.allclose(flow(large, FT), flow(pooled, FT), rtol=1e-12)
    else:
        assert flow(FT, large).shape == (2, 4, 3)
        assert torch.allclose(flow(FT, large), flow(FT, pooled), rtol=1e-12)


def test_zero_at_identity_and_no_gradient_for_the_teacher() -> None:
    """Equal flows cost 0, also from maps of another size; the teacher gets no gradient."""
    assert float(fsp_loss((FS, FT), (FS, FT))) == 0
    twice = [x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) for x in (FS, FT)]
    assert float(fsp_loss((FS, FT), (twice[0], twice[1]))) == pytest.approx(0, abs=1e-30)
    teacher = [x.clone().requires_grad_(True) for x in (FB, F1)]
    student = FS.clone().requires_grad_(True)
    fsp_loss((student, FT), (teacher[0], teacher[1])).backward()
    assert student.grad is not None
    assert all(x.grad is None for x in teacher)


def test_neighbours_are_stem_and_stages() -> None:
    """Four taps give three flows of equal weight."""
    torch.manual_seed(0)
    student, teacher = build_model("resnet8", 5, 16, 3, width=0.5), build_model("resnet20", 5, 16, 3, width=0.5)
    method = make_method("fsp", None, make_context(student, teacher))
    assert isinstance(method, Fsp)
    assert method.student_taps == ("stem:output", "block1:output", "block2:output", "block3:output")
    assert method.teacher_taps == ("act:output", "layer1:output", "layer2:output", "layer3:output")
    step = run_step(method, student, teacher)
    (s, t) = ([step.student_features[x] for x in method.student_taps], list(step.teacher_features.values()))
    total = sum(float(fsp_loss((s[i], s[i + 1]), (t[i], t[i + 1])).detach()) for i in range(3))
    assert float(method(step).detach()) == pytest.approx(total, rel=1e-6)


def test_unequal_channels_are_refused_with_both_taps_and_numbers() -> None:
    """The error names each pair of taps that does not fit and how many channels they have; the others it leaves out."""
    student, teacher = build_model("resnet8", 5, 16, 3), build_model("resnet20", 5, 16, 3)
    taps = {"student_taps": ["@stage1", "@stage2"], "teacher_taps": ["@stage1", "@stage3"]}
    with pytest.raises(ConfigError) as caught:
        make_method("fsp", taps, make_context(student, teacher))
    assert "student tap 'block2:output' has 32 and teacher tap 'layer3:output' 64" in str(caught.value)
    assert "block1" not in str(caught.value)
    with pytest.raises(ConfigError, match="student tap 'block1:output' has 16 and teacher tap 'blocks.1:output' 32"):
        make_method("fsp", None, make_context(student, build_model("wrn-16-2", 5, 16, 3)))


def test_one_tap_has_no_neighbour() -> None:
    """A flow needs two taps."""
    student, teacher = build_model("resnet8", 5, 16, 3), build_model("resnet20", 5, 16, 3)
    with pytest.raises(ConfigError, match="at least 2 taps"):
        make_method("fsp", {"student_taps": "@stage1", "teacher_taps": "@stage1"}, make_context(student, teacher))


def test_the_init_stage_has_weight_one() -> None:
    """The loss comes 30 epochs alone at weight 1, whatever its weight beside the labels, and stays in the task."""
    from tinykd.config import load_recipe

    row = METHODS["fsp"]
    assert (row.init, row.args["init_epochs"], row.args["init_weight"], row.args["joint"]) == ("student", 30, 1.0, True)
    recipe = load_recipe("smoke", ['distill=[{"method": "fsp", "weight": 50.0, "args": {"init_epochs": 3}}]'])
    first, task = list_stages(recipe)
    assert (first.config.epochs, first.config.label_weight) == (3, 0)
    assert [loss.weight for loss in (*first.losses, *task.losses)] == [1.0, 50.0]
