"""Gradient attention: where in the image the loss is sensitive (Zagoruyko and Komodakis, ICLR 2017, section 3.2).

arXiv:1612.03928. J is the gradient of an image's cross-entropy with respect to the image, or to a feature map, and the
loss of this file is a function of it, so training differentiates twice. Batch norm in training mode couples the images
of a batch: J of one image then holds traces of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from tinykd.distill.adapters import still_statistics
from tinykd.distill.base import (
    Context,
    DistillStep,
    FeatureMethod,
    Shape,
    Taps,
    in_float32,
    match_size,
    require_choice,
    require_maps,
    unit_vectors,
)
from tinykd.errors import ConfigError
from tinykd.models.taps import record
from tinykd.models.teacher import Teacher

MODES = ("match", "symmetry", "min_l2")
NORMALIZE = ("none", "l2")
Model = Callable[[torch.Tensor], torch.Tensor]


def loss_gradients(
    losses: torch.Tensor, places: Sequence[torch.Tensor], differentiable: bool
) -> tuple[torch.Tensor, ...]:
    """Return the gradient of each image's loss with respect to its part of each place.

    That is the gradient of the sum of the losses: with their mean, J would shrink with the size of the batch.

    Args:
        losses: (N,).
        places: (N, ...) tensors that the losses are computed from.
        differentiable: keep the graph of J, so that a loss of it can be differentiated in turn.

    Raises:
        ValueError: a place that the losses do not depend on, or that was made without a graph.
    """
    if not losses.requires_grad or not all(place.requires_grad for place in places):
        raise ValueError("at_grad: the forward pass must be part of the graph, and the images must require a gradient")
    return torch.autograd.grad(losses.sum(), list(places), create_graph=differentiable, retain_graph=True)


def gradient_distance(
    student: torch.Tensor, teacher: torch.Tensor | None = None, normalize: str = "none"
) -> torch.Tensor:
    """Return `1/2 mean_n ||J_s - J_t||^2` of (N, ...) gradients, a 0-d tensor; without a teacher, J_t is 0.

    Args:
        student: (N, ...); lower precisions are raised to float32.
        teacher: (N, ...) of the same size.
        normalize: "l2" divides each image's J by its norm first; a J of zeros stays zeros.
    """
    with torch.autocast(student.device.type, enabled=False):
        parts = [part.flatten(1) for part in in_float32(student, *([] if teacher is None else [teacher]))]
        if normalize == "l2":
            parts = [unit_vectors(part) for part in parts]
        difference = parts[0] if teacher is None else parts[0] - parts[1]
        return 0.5 * difference.square().sum(dim=1).mean()


class AtGrad(FeatureMethod):
    """A loss of the student's J, summed over the places where J is taken.

    No weight was published. `figures` gives the loss divided by the cross-entropy, and the weight at which it would be
    a tenth of it. With normalize "l2" the loss lies in 0..2 and starts near 1; as it is, J depends much on the network,
    and is large where batch norm sees few pixels. For ResNet-8 on a CPU a step takes 4 times as long as plain training
    with "min_l2", 5 times with "match" (a ResNet-20 teacher included), 7 times with "symmetry".

    Under mixed precision both models run once more in float32, because J vanishes in float16; running statistics are
    left alone by such extra passes. With dropout, an extra pass draws masks of its own.

    Args:
        mode: "match" is `gradient_distance` to the teacher's J; "symmetry" asks that J of the mirrored image is the
            mirrored J; "min_l2" asks for a small J (double backpropagation). The last two do not ask the teacher.
        normalize: "none", or "l2" for J / ||J||, because J vanishes as the loss does; not with "min_l2".
        student_taps, teacher_taps: where J is taken; both None for the images. The channels of a pair must be equal;
            the larger map is pooled to the smaller.

    Raises:
        ConfigError: an unknown mode, or arguments that do not go together.
    """

    maps_only = True
    local = True
    needs_input_grad = True

    def __init__(
        self,
        mode: str = "match",
        normalize: str = "none",
        student_taps: Taps | None = None,
        teacher_taps: Taps | None = None,
    ) -> None:
        super().__init__(student_taps, teacher_taps)
        require_choice("at_grad", "mode", mode, MODES)
        require_choice("at_grad", "normalize", normalize, NORMALIZE)
        if mode == "min_l2" and normalize == "l2":
            raise ConfigError("at_grad: mode min_l2 needs normalize none: the norm of J / ||J|| is always 1")
        if mode == "match" and (student_taps is None) != (teacher_taps is None):
            raise ConfigError("at_grad: give student_taps and teacher_taps, or neither for the images")
        if mode != "match" and teacher_taps is not None:
            raise ConfigError(f"at_grad: mode {mode} does not look at the teacher, so it takes no teacher_taps")
        self.mode, self.normalize = mode, normalize
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def setup(self, context: Context) -> None:
        """Resolve the taps and check that the pairs fit.

        Raises:
            ConfigError: no teacher, a tap that does not exist or gives no map, or pairs of unequal channels.
        """
        if self.mode == "match" and context.teacher is None:
            raise ConfigError("needs a teacher")
        wanted, _ = self.wanted_taps
        if wanted is None:
            return
        if self.mode == "match":
            super().setup(context)
            return
        self.student_taps = context.student.resolve(wanted)
        require_maps(context.student.name, context.student.shapes(self.student_taps))

    def build(self, student_shapes: list[Shape], teacher_shapes: list[Shape], context: Context) -> None:
        """Check that the taps of each pair give maps of equal channels.

        Raises:
            ConfigError: they do not.
        """
        for s, t, tap, other in zip(student_shapes, teacher_shapes, self.student_taps, self.teacher_taps, strict=True):
            if s[0] != t[0]:
                raise ConfigError(
                    f"at_grad: student tap '{tap}' has {s[0]} channels but teacher tap '{other}' has {t[0]}: gradients "
                    "are compared channel by channel; choose other taps, or none for the gradient at the images"
                )

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        # Around the inner differentiation, too: its products would be made in half precision as well.
        with torch.autocast(step.images.device.type, enabled=False):
            return self._loss(step, step.student_logits.dtype in (torch.float16, torch.bfloat16))

    def _loss(self, step: DistillStep, half: bool) -> torch.Tensor:
        if half:
            logits, places = _run(_require(step.run_student, "student"), step.images, self.student_taps)
        else:
            logits, places = step.student_logits, [step.student_features[tap] for tap in self.student_taps]
        losses = step.cross_entropy(logits, reduction="none")
        own = loss_gradients(losses, places or [step.images], True)
        if self.mode == "match":
            wanted = self._teacher_gradients(step, half)
            terms = [gradient_distance(*match_size(s, t), self.normalize) for s, t in zip(own, wanted, strict=True)]
        elif self.mode == "symmetry":
            flipped = step.images.detach().flip(-1).requires_grad_(True)
            logits, places = _run(_require(step.run_student, "student"), flipped, self.student_taps)
            other = loss_gradients(step.cross_entropy(logits, reduction="none"), places or [flipped], True)
            terms = [gradient_distance(s, o.flip(-1), self.normalize) for s, o in zip(own, other, strict=True)]
        else:
            terms = [gradient_distance(s) for s in own]
        total = torch.stack(terms).sum()
        self._last = total.detach(), losses.detach().mean()
        return total

    def _teacher_gradients(self, step: DistillStep, half: bool) -> tuple[torch.Tensor, ...]:
        """Return the teacher's J, detached."""
        if half:
            teacher = _require(step.run_teacher, "teacher")
            logits, places = _run(teacher, step.images, self.teacher_taps)
        elif step.teacher_logits is None:
            raise ValueError("at_grad: the step has no teacher logits")
        else:
            logits, places = step.teacher_logits, [step.teacher_features[tap] for tap in self.teacher_taps]
        losses = step.cross_entropy(logits, reduction="none")
        found = loss_gradients(losses, places or [step.images], False)
        return tuple(gradient.detach() for gradient in found)

    def figures(self, step: DistillStep) -> dict[str, torch.Tensor]:
        """Return the last loss divided by the cross-entropy, and the weight that would make it a tenth of it."""
        if self._last is None:
            return {}
        loss, cross_entropy = self._last
        return {
            "to_cross_entropy": loss / cross_entropy.clamp(min=1e-12),
            "weight_for_tenth": 0.1 * cross_entropy / loss.clamp(min=1e-12),
        }


def _require(model: Model | None, name: str) -> Model:
    if model is None:
        raise ValueError(f"at_grad: the step does not say how to run the {name}")
    return model


def _run(model: Model, images: torch.Tensor, taps: Sequence[str]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return logits and tapped tensors of one more pass, with running statistics left alone."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    tapped = module.model if isinstance(module, Teacher) else module
    with still_statistics(module), record(tapped, taps) as found:
        logits = model(images)
    return logits, [found[tap] for tap in taps]
