"""Weight hints: the student's weights, mapped linearly to the teacher's shape, match the teacher's weights.

The form in which the MIT lecture 6.5940 (TinyML, lecture 9) states "matching intermediate weights". The literature's
method behind it is FitNets (arXiv:1412.6550), which matches intermediate features: `hint`. A layer's hidden units may
come in any order, so matching weights by position asks for more than the same function; little is to be gained by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tinykd.distill.adapters import evaluating, sample_images
from tinykd.distill.base import Context, DistillMethod, DistillStep, ModelView, Taps, in_float32, require_number
from tinykd.errors import ConfigError


def map_weight(weight: torch.Tensor, out_map: torch.Tensor, in_map: torch.Tensor) -> torch.Tensor:
    """Return phi(W) = A_out W A_in for each pixel of the kernel: (O_t, I_t, k, k).

    Args:
        weight: (O_s, I_s, k, k).
        out_map: A_out, (O_t, O_s).
        in_map: A_in, (I_s, I_t).
    """
    return torch.einsum("po,oikl,ij->pjkl", out_map, weight, in_map)


def centre_pad(weight: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the (O, I, k, l) kernel with zeros around it up to (O, I, *size); of an odd rest, more at the end."""
    missing = [max(0, want - have) for want, have in zip(size, weight.shape[2:], strict=True)]
    (top, left), (bottom, right) = [m // 2 for m in missing], [m - m // 2 for m in missing]
    return F.pad(weight, (left, right, top, bottom))


def weight_hint_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    out_map: torch.Tensor,
    in_map: torch.Tensor,
    ridge: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the squared distance of phi(W_s) and W_t, plus `ridge` times that of both maps from 0: a 0-d tensor.

    phi alone could fit W_t where its rank allows it, and the student would learn nothing; the ridge keeps it small.

    Args:
        student: (O_s, I_s, k, l); lower precisions are raised to float32.
        teacher: (O_t, I_t, k', l'); no gradient flows into it. The smaller kernel gets zeros around it.
        out_map, in_map: see `map_weight`.
        ridge: at least 0.
        reduction: "mean" or "sum", over all elements of the teacher's weight, and of each map.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, out_map, in_map = in_float32(student, teacher.detach(), out_map, in_map)
        size = [max(s, t) for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True)]
        difference = map_weight(centre_pad(student, size), out_map, in_map) - centre_pad(teacher, size)
        reduce = torch.mean if reduction == "mean" else torch.sum
        maps = reduce(out_map.square()) + reduce(in_map.square())
        return reduce(difference.square()) + ridge * maps


def _as_kernel(weight: torch.Tensor) -> torch.Tensor:
    """Return the (O, I) weight of a linear layer as (O, I, 1, 1), and a convolution's as it is."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def _first_map(rows: int, columns: int) -> nn.Parameter:
    """Return the map that training starts from: the identity, or rows or columns that are orthonormal."""
    start = torch.empty(rows, columns)
    return nn.Parameter(nn.init.eye_(start) if rows == columns else nn.init.orthogonal_(start))


def weighted_layers(view: ModelView, taps: Taps) -> list[str]:
    """Return the paths of the layers whose weights the taps stand for.

    A tap at a convolution or linear layer is that layer. Any other tap stands for the last convolution on the way to
    it: of those that have run by then, the one with the most convolutions on its longest way from the images, so that a
    projection shortcut, which runs after the convolutions that it goes around, is not taken for it.

    Raises:
        ConfigError: a tap that the model does not have, or one that no convolution leads to.
    """
    resolved = view.resolve(taps)
    modules = dict(view.module.named_modules())
    names = {module: name for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    outputs: list[tuple[str, torch.Tensor]] = []
    seen: dict[str, int] = {}
    handles = [
        module.register_forward_hook(lambda module, _, output: outputs.append((names[module], output)))
        for module in names
    ]
    for tap in resolved:
        path, _, end = tap.partition(":")
        at_input = modules[path].register_forward_pre_hook
        at_output = modules[path].register_forward_hook
        handles.append(
            at_input(lambda *_, tap=tap: seen.update({tap: len(outputs)}))
            if end == "input"
            else at_output(lambda *_, tap=tap: seen.update({tap: len(outputs)}))
        )
    try:
        with evaluating(view.module), torch.enable_grad():
            view.module(sample_images(view).requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
    depths = _depths([output.grad_fn for _, output in outputs])
    paths = []
    for tap in resolved:
        path = tap.partition(":")[0]
        if isinstance(modules[path], nn.Conv2d | nn.Linear):
            paths.append(path)
            continue
        candidates = range(seen.get(tap, 0))
        if not candidates:
            raise ConfigError(f"weight_hint: {view.name} has no convolution in front of '{tap}'")
        paths.append(outputs[max(candidates, key=lambda index: (depths[index], index))][0])
    return paths


def _depths(nodes: Sequence[torch.autograd.graph.Node | None]) -> list[int]:
    """Return for each node, in order of execution, how many of them lie on the longest way to it, itself included."""
    depths: dict[torch.autograd.graph.Node, int] = {}
    for node in nodes:
        if node is None:
            continue
        todo, passed, deepest = [node], {node}, 0
        while todo:
            for parent, _ in todo.pop().next_functions:
                if parent is None or parent in passed:
                    continue
                passed.add(parent)
                if parent in depths:
                    deepest = max(deepest, depths[parent])
                else:
                    todo.append(parent)
        depths[node] = deepest + 1
    return [0 if node is None else depths[node] for node in nodes]


class WeightHint(DistillMethod):
    """`weight_hint_loss` with learnt maps, summed over pairs of layers; the last convolution of every stage by default.

    No weight was published. The loss depends on the weights alone, not on the images.

    Args:
        ridge: see `weight_hint_loss`; at least 0.
        student_taps, teacher_taps: module paths of convolutions or linear layers, or names as for feature taps (see
            `weighted_layers`); None is the last convolution of every stage, the last ones where one side has more.

    Raises:
        ConfigError: a ridge below 0.
    """

    local = True

    def __init__(self, ridge: float = 1e-3, student_taps: Taps | None = None, teacher_taps: Taps | None = None) -> None:
        super().__init__()
        require_number("weight_hint", "ridge", ridge, least=0)
        self.ridge = float(ridge)
        self.wanted_taps = student_taps, teacher_taps
        self.student_layers: list[str] = []
        self.teacher_layers: list[str] = []

    def setup(self, context: Context) -> None:
        """Find the layers, keep the teacher's weights, and make the maps.

        Raises:
            ConfigError: no teacher, a layer that does not exist, or unequal numbers of layers.
        """
        if context.teacher is None:
            raise ConfigError("needs a teacher")
        views = context.student, context.teacher
        layers = [
            weighted_layers(view, "@stages" if wanted is None else wanted)
            for view, wanted in zip(views, self.wanted_taps, strict=True)
        ]
        if len(layers[0]) != len(layers[1]):
            if self.wanted_taps != (None, None):
                raise ConfigError(
                    f"weight_hint: {len(layers[0])} student layers but {len(layers[1])} teacher layers: "
                    "they are compared in pairs"
                )
            count = min(len(paths) for paths in layers)
            layers = [paths[-count:] for paths in layers]
        self.student_layers, self.teacher_layers = layers
        self.out_maps, self.in_maps = nn.ParameterList(), nn.ParameterList()
        for index, (own, wanted) in enumerate(zip(*layers, strict=True)):
            student = _as_kernel(context.student.module.get_submodule(own).weight)  # type: ignore[arg-type]
            teacher = _as_kernel(context.teacher.module.get_submodule(wanted).weight)  # type: ignore[arg-type]
            # With the method onto its device, but not into its checkpoints: the teacher has its own file.
            self.register_buffer(f"teacher_{index}", teacher.detach().clone(), persistent=False)
            self.out_maps.append(_first_map(teacher.shape[0], student.shape[0]))
            self.in_maps.append(_first_map(student.shape[1], teacher.shape[1]))

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor.

        Raises:
            ValueError: the step does not hold the student as a module.
        """
        student = step.run_student
        if not isinstance(student, nn.Module):
            raise ValueError("weight_hint: the step does not hold the student, whose weights it compares")
        terms = [
            weight_hint_loss(
                self._plain_part(student.get_submodule(path).weight, index),  # type: ignore[arg-type]
                self.get_buffer(f"teacher_{index}"),
                self.out_maps[index],
                self.in_maps[index],
                self.ridge,
            )
            for index, path in enumerate(self.student_layers)
        ]
        return torch.stack(terms).sum()

    def _plain_part(self, weight: torch.Tensor, index: int) -> torch.Tensor:
        """Return the weight of a student's layer, (O_s, I_s, k, k): the first channels where the student is widened."""
        return _as_kernel(weight)[: self.out_maps[index].shape[1], : self.in_maps[index].shape[0]]
