"""Methods on features, weights and gradients: every default pair of models, and the contract that all of them keep."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from distill_support import make_context, make_method, run_step, small_models, train_steps
from torch import nn

from tinykd.distill import METHODS, build_method
from tinykd.distill.base import DistillMethod, DistillStep
from tinykd.errors import ConfigError
from tinykd.models import build_model
from tinykd.models.taps import record
from tinykd.models.teacher import Teacher

KEYS = ("hint", "weight_hint", "nst", "ft", "at", "at_grad", "ab", "fsp", "vid", "reviewkd")
WITH_ADAPTERS = {"hint", "weight_hint", "ft", "ab", "vid", "reviewkd"}
WITHOUT_TAPS = {"weight_hint", "at_grad"}

STUDENTS: dict[str, dict[str, Any]] = {"resnet8": {}, "mobilenetv2": {"width": 0.35, "head_channels": 160}}
TEACHERS = ("resnet20", "resnet56", "wrn-16-2", "resnet18")


def make_step(
    method: DistillMethod, student: nn.Module, teacher: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> DistillStep:
    """Return the step of these images, both networks as they are."""
    images = images.clone().requires_grad_(method.needs_input_grad)
    frozen = Teacher(teacher)
    with record(student, method.student_taps) as student_features:
        student_logits = student(images)
    with torch.set_grad_enabled(method.needs_input_grad), record(frozen.model, method.teacher_taps) as found:
        teacher_logits = frozen(images)
    models = {"run_student": student, "run_teacher": frozen}
    return DistillStep(images, labels, student_logits, teacher_logits, student_features, found, **models)


def moved(module: nn.Module) -> list[str]:
    """Return the names of the parameters that have a gradient other than 0."""
    return [name for name, p in module.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]


@pytest.mark.parametrize("teacher_name", TEACHERS)
@pytest.mark.parametrize("student_name", STUDENTS)
def test_every_default_pair_works(student_name: str, teacher_name: str) -> None:
    """Each method sets up for each pair of families and gives finite gradients; only fsp may refuse, for its reason."""
    torch.manual_seed(0)
    student = build_model(student_name, 5, 16, 3, **STUDENTS[student_name])
    teacher = build_model(teacher_name, 5, 16, 3)
    context = make_context(student, teacher)
    for key in KEYS:
        if key == "fsp" and (student_name, teacher_name) not in (("resnet8", "resnet20"), ("resnet8", "resnet56")):
            with pytest.raises(ConfigError, match=r"student tap '.*' has \d+ and teacher tap '.*' \d+"):
                make_method(key, None, context)
            continue
        method = make_method(key, None, context)
        student.zero_grad()
        loss = method(run_step(method, student, teacher, count=4))
        assert (loss.ndim, loss.dtype) == (0, torch.float32), key
        loss.backward()
        assert torch.isfinite(loss.detach()), key
        gradients = [p.grad for module in (student, method) for p in module.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(g).all()) for g in gradients), key
        assert moved(student), key
        assert all(p.grad is None for p in teacher.parameters()), key


@pytest.mark.parametrize("key", KEYS)
def test_nothing_flows_into_the_teacher(key: str) -> None:
    """Teacher tensors that require a gradient get none, and neither do its parameters."""
    student, teacher = small_models()
    method = make_method(key, None, make_context(student, teacher))
    step = run_step(method, student, teacher)
    if method.needs_input_grad:
        assert step.teacher_logits is not None
        assert step.teacher_logits.requires_grad, "without a graph there is no J of the teacher"
        teacher.requires_grad_(True)
        step = run_step(method, student, teacher)
        teacher.requires_grad_(False)
        method(step).backward()
    else:
        features = {tap: value.clone().requires_grad_(True) for tap, value in step.teacher_features.items()}
        assert features or key in WITHOUT_TAPS
        method(replace(step, teacher_features=features)).backward()
        assert all(value.grad is None for value in features.values())
    assert all(p.grad is None for p in teacher.parameters())
    assert moved(student)


@pytest.mark.parametrize("key", KEYS)
def test_adapters_belong_to_the_method(key: str) -> None:
    """Adapters are parameters of the method, take a gradient, and leave the student's names and parameters alone."""
    student, teacher = small_models()
    names = list(student.state_dict())
    method = make_method(key, None, make_context(student, teacher))
    assert bool(list(method.parameters())) == (key in WITH_ADAPTERS)
    assert list(student.state_dict()) == names
    others = {id(p) for model in (student, teacher) for p in model.parameters()}
    assert not [name for name, p in method.named_parameters() if id(p) in others]
    assert not [name for name in method.state_dict() if "teacher" in name], "the teacher has its own file"
    method(run_step(method, student, teacher)).backward()
    frozen = {name for name, _ in method.named_parameters() if name.startswith("paraphrasers.")}
    assert set(moved(method)) == {name for name, _ in method.named_parameters()} - frozen


@pytest.mark.parametrize("key", KEYS)
def test_the_order_of_the_batch_changes_nothing(key: str) -> None:
    """The same images in another order have the same loss, with batch norm in training mode too."""
    student, teacher = small_models()
    method = make_method(key, None, make_context(student, teacher))
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.randn((8, 3, 16, 16), generator=generator), torch.arange(8) % 5
    order = torch.randperm(8, generator=generator)
    losses = [
        float(method(make_step(method, student, teacher, x, y)).detach())
        for x, y in ((images, labels), (images[order], labels[order]))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("key", KEYS)
def test_mean_over_images(key: str) -> None:
    """A batch that holds every image twice has the same loss and gradient: it may be shared among processes."""
    assert build_method(key).local
    student, teacher = small_models()
    method = make_method(key, None, make_context(student, teacher))
    images, labels = torch.randn((6, 3, 16, 16), generator=torch.Generator().manual_seed(5)), torch.arange(6) % 5
    found = []
    for x, y in ((images, labels), (images.repeat(2, 1, 1, 1), labels.repeat(2))):
        student.zero_grad()
        loss = method(make_step(method, student, teacher, x, y))
        loss.backward()
        norm = torch.stack([p.grad.square().sum() for p in student.parameters() if p.grad is not None]).sum().sqrt()
        found.append((float(loss.detach()), float(norm)))
    assert found[1] == pytest.approx(found[0], rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("key", KEYS)
def test_half_precision_models_give_a_float32_loss(key: str, dtype: torch.dtype) -> None:
    """Features in half precision, as autocast makes them, give a finite float32 loss close to that of full precision.

    It is computed in float32 also inside autocast. at_grad differentiates in float32 whatever the models run in.
    """
    student, teacher = small_models()
    method = make_method(key, None, make_context(student, teacher))
    step = run_step(method, student, teacher)
    exact = float(method(step).detach())
    features = [
        {tap: value.detach().to(dtype) for tap, value in side.items()}
        for side in (step.student_features, step.teacher_features)
    ]
    half = replace(
        run_step(method, student, teacher),
        student_logits=step.student_logits.to(dtype),
        student_features=features[0],
        teacher_features=features[1],
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(half)
    assert loss.dtype == torch.float32
    rounded = key not in WITHOUT_TAPS
    assert float(loss.detach()) == pytest.approx(exact, rel=5e-2 if rounded else 1e-5)
    if rounded:
        assert float(loss.detach()) == float(method(half).detach()), "autocast must not reach inside"
    if list(method.parameters()) and method.training:
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


LEARNING_RATES = {"hint": 0.05, "weight_hint": 2.0, "ab": 0.01, "fsp": 0.05, "reviewkd": 0.05}


@pytest.mark.parametrize("key", KEYS)
def test_a_fixed_batch_is_learnt(key: str) -> None:
    """Fifty steps of student and adapters lower the loss by 30 % and more of its size; the teacher stays.

    vid's may become negative. A random teacher's J as it is has directions that no student has; without its length the
    student follows.
    """
    student, teacher = small_models()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    method = make_method(key, {"normalize": "l2"} if key == "at_grad" else None, make_context(student, teacher))
    losses = train_steps(method, student, teacher, lr=LEARNING_RATES.get(key, 0.3))
    assert losses[0] - losses[-1] > 0.3 * abs(losses[0]), (losses[0], losses[-1])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("key", [key for key in KEYS if key not in WITHOUT_TAPS])
def test_maps_of_zeros_are_finite(key: str) -> None:
    """A student or teacher whose maps are all 0 gives a finite loss and finite gradients."""
    student, teacher = small_models()
    method = make_method(key, None, make_context(student, teacher))
    step = run_step(method, student, teacher)
    for blank_student, blank_teacher in ((True, False), (False, True), (True, True)):
        own = {
            tap: (torch.zeros_like(x) if blank_student else x.detach().clone()).requires_grad_(True)
            for tap, x in step.student_features.items()
        }
        wanted = {tap: torch.zeros_like(x) if blank_teacher else x for tap, x in step.teacher_features.items()}
        loss = method(replace(step, student_features=own, teacher_features=wanted))
        loss.backward()
        assert torch.isfinite(loss.detach())
        for x in own.values():
            assert x.grad is None or bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("key", KEYS)
def test_without_a_teacher_nothing_is_set_up(key: str) -> None:
    """No teacher is an error before training, and so are taps that do not come in pairs."""
    student, teacher = small_models()
    with pytest.raises(ConfigError, match="needs a teacher"):
        make_method(key, None, make_context(student, None))
    if key != "at_grad":
        taps = {"student_taps": ["@stage1", "@stage2"], "teacher_taps": ["@stage1", "@stage2", "@stage3"]}
        with pytest.raises(ConfigError, match="2 student .* but 3 teacher .* in pairs"):
            make_method(key, taps, make_context(student, teacher))


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("reviewkd", "weight_hint")])
def test_embeddings_are_no_maps(key: str) -> None:
    """A tap that gives vectors where a map is needed is refused by name, on either side."""
    student, teacher = small_models()
    for taps, named in (
        ({"student_taps": ["@stage2", "@pooled"], "teacher_taps": ["@stage2", "@stage3"]}, "student tap 'head"),
        ({"student_taps": ["@stage2", "@stage3"], "teacher_taps": ["@stage2", "@pooled"]}, "teacher tap 'pool"),
    ):
        with pytest.raises(ConfigError, match=named):
            make_method(key, taps, make_context(student, teacher))


@pytest.mark.parametrize("key", KEYS)
def test_rows_and_classes_have_the_same_defaults(key: str) -> None:
    """A recipe that says nothing gets what the class does by itself."""
    parameters = inspect.signature(type(build_method(key))).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == METHODS[key].args


def test_rows_are_complete() -> None:
    """Each method is a row of the registry with its axis, a weight, and the arguments of its init stage."""
    axes = {"weight_hint": "weights", "at_grad": "gradients", "ab": "sparsity", "fsp": "relations"}
    for key in KEYS:
        row = METHODS[key]
        assert row.axis == axes.get(key, "features")
        assert row.needs_teacher
        assert (row.init != "") == ("init_epochs" in row.args)
    assert {key: METHODS[key].init for key in KEYS if METHODS[key].init} == {
        "hint": "student",
        "ft": "method",
        "ab": "student",
        "fsp": "student",
    }
    starts = {key: METHODS[key].args["init_epochs"] for key in ("hint", "ft", "ab", "fsp")}
    assert starts == {"hint": 0, "ft": 30, "ab": 30, "fsp": 30}


@pytest.mark.parametrize("key", ["hint", "ft", "ab", "fsp"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"init_epochs": -1}, "init_epochs must be a whole number of at least 0"),
        ({"init_epochs": 1.5}, "init_epochs"),
        ({"init_lr": 0}, "init_lr must be a number above 0"),
        ({"joint": 1}, "joint must be true or false"),
        ({"joint": False, "init_epochs": 0}, "would never be used"),
        ({"init_weight": 0}, "init_weight must be a number above 0"),
    ],
)
def test_impossible_init_stages_are_refused(key: str, args: dict[str, Any], message: str) -> None:
    """The length, learning rate and weight of an init stage are checked where a method has them."""
    if set(args) <= set(METHODS[key].args):
        with pytest.raises(ConfigError, match=f"{key}: .*{message}"):
            build_method(key, args)
