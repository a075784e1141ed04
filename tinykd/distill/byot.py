"""Be your own teacher: early exits of a network learn from its deepest one (Zhang et al. 2019, arXiv:1905.08094)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinykd.distill.base import (
    Batch,
    Context,
    DistillMethod,
    DistillStep,
    in_float32,
    require_choice,
    require_number,
)
from tinykd.distill.kd import kd_loss
from tinykd.distill.networks import mean_probabilities
from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone
from tinykd.models.count import count_macs
from tinykd.models.early_exit import EarlyExit, ExitHead, MultiExit, choose_exits, stage_ends, stage_shapes
from tinykd.models.load import ModelSpec, save_model

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {"alpha": 0.3, "feature_weight": 0.03, "temperature": 3.0, "squared": True},
    "official": {"alpha": 0.3, "feature_weight": 0.0, "temperature": 3.0, "squared": False},
}
"""`default` has the weights of the paper and the T^2 of Hinton et al.; `official` is the code of its authors."""

THRESHOLDS = (0.5, 0.7, 0.9, 0.95, 0.99)
"""Confidences for which `results` tells what early exits would give."""


def byot_loss(
    exits: Sequence[torch.Tensor],
    deepest: torch.Tensor,
    cross_entropy: Callable[[torch.Tensor], torch.Tensor],
    alpha: float,
    temperature: float,
    squared: bool = True,
) -> torch.Tensor:
    """Return the loss of the early exits' logits, a 0-d tensor: the sum over them of
    `(1 - alpha) CE(q_i) + alpha T^2 KL(softmax(q_C / T) || softmax(q_i / T))` (equations 5 and 6 of the paper).

    Divergences are summed over classes and averaged over images; no gradient flows into the deepest exit, whose own
    label loss is the recipe's.

    Args:
        exits: logits of the early exits, (N, K) each.
        deepest: logits of the network itself, (N, K).
        cross_entropy: maps (N, K) logits to a 0-d loss.
        alpha: the deepest exit's part, 0..1.
        temperature: T, above 0.
        squared: False leaves out the factor T^2.
    """
    with torch.autocast(deepest.device.type, enabled=False):
        scale = 1.0 if squared else temperature**-2
        losses = [
            (1 - alpha) * cross_entropy(z) + alpha * scale * kd_loss(z, deepest, temperature)
            for z in in_float32(*exits)
        ]
        return torch.stack(losses).sum()


def feature_loss(adapted: Sequence[torch.Tensor], deepest: torch.Tensor) -> torch.Tensor:
    """Return `sum_i mean_n ||adapted_i - deepest||^2`, a 0-d tensor: summed over channels, averaged over images.

    Args:
        adapted: (N, D) embeddings of the early exits behind their adapters.
        deepest: (N, D), the network's own; no gradient flows into it (equation 7 of the paper).
    """
    with torch.autocast(deepest.device.type, enabled=False):
        target, *mine = in_float32(deepest.detach(), *adapted)
        return torch.stack([(x - target).square().sum(dim=1).mean() for x in mine]).sum()


class Byot(DistillMethod):
    """Heads at the end of every stage but the last, taught by the labels and by the network's own classifier.

    Heads and adapters belong to the method: the student is exported without them. `save` writes each exit as a network
    of its own, `exits/exit<n>.safetensors`. The weight of the paper is 1.

    Args:
        preset: "default" or "official"; gives what is None below.
        alpha: the deepest exit's part of each early exit's loss, 0..1; the rest is the labels'.
        feature_weight: of the squared distance of pooled features, at least 0; 0 leaves the adapters out.
        temperature: T, above 0.
        squared: multiply the divergence by T^2.

    Raises:
        ConfigError: an argument outside its range.
    """

    local = True
    averaged = True

    def __init__(
        self,
        preset: str = "default",
        alpha: float | None = None,
        feature_weight: float | None = None,
        temperature: float | None = None,
        squared: bool | None = None,
    ) -> None:
        super().__init__()
        require_choice("byot", "preset", preset, tuple(PRESETS))
        given = {"alpha": alpha, "feature_weight": feature_weight, "temperature": temperature, "squared": squared}
        values = {**PRESETS[preset], **{key: value for key, value in given.items() if value is not None}}
        require_number("byot", "alpha", values["alpha"], least=0)
        if values["alpha"] > 1:
            raise ConfigError(f"byot: alpha must be a number of at most 1, not {values['alpha']!r}")
        require_number("byot", "feature_weight", values["feature_weight"], least=0)
        require_number("byot", "temperature", values["temperature"], above=0)
        if not isinstance(values["squared"], bool):
            raise ConfigError(f"byot: squared must be true or false, not {values['squared']!r}")
        self.alpha, self.feature_weight = float(values["alpha"]), float(values["feature_weight"])
        self.temperature, self.squared = float(values["temperature"]), values["squared"]
        self.heads = nn.ModuleList()
        self.adapters = nn.ModuleList()

    def setup(self, context: Context) -> None:
        """Build a head for each stage but the last, and the adapters.

        Raises:
            ConfigError: the student has fewer than two stages, or none that are known.
        """
        view = context.student
        if not isinstance(view.module, Backbone):
            raise ConfigError(f"byot: {view.name} has no named stages to put exits at")
        shapes = stage_shapes(view.module, view.input_shape)
        if len(shapes) < 2:
            raise ConfigError(f"byot: {view.name} has {len(shapes)} stage: exits need at least 2")
        chain = view.module.chain()
        ends = tuple(f"{chain[end]}:output" for end in stage_ends(view.module)[:-1])
        pooled = view.resolve("@pooled")
        self.student_taps = (*ends, *pooled)
        heads = [ExitHead(shapes[index:], context.num_classes) for index in range(len(ends))]
        self.heads = nn.ModuleList(heads)
        if self.feature_weight:
            (deepest,) = view.shapes(pooled)[pooled[0]]
            self.adapters = nn.ModuleList(nn.Linear(head.embedding_channels, deepest) for head in heads)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        *ends, pooled = (step.student_features[tap] for tap in self.student_taps)
        embeddings = [head.embed(end) for head, end in zip(self._heads(), ends, strict=True)]
        exits = [head.classify(x) for head, x in zip(self._heads(), embeddings, strict=True)]
        loss = byot_loss(exits, step.student_logits, step.cross_entropy, self.alpha, self.temperature, self.squared)
        if not self.feature_weight:
            return loss
        adapted = [adapter(x) for adapter, x in zip(self.adapters, embeddings, strict=True)]
        return loss + self.feature_weight * feature_loss(adapted, pooled)

    def _heads(self) -> list[ExitHead]:
        return list(self.heads)  # type: ignore[arg-type]

    def results(self, student: nn.Module, batches: Callable[[], Iterator[Batch]]) -> dict[str, float]:
        """Return what the exits are worth on the test images.

        `exit<n>_top1` (0..1) and `exit<n>_macs` of each exit as a network of its own (the last one is the student),
        `ensemble_top1` of their mean probabilities, and for each confidence threshold `threshold_<t>_top1` and
        `threshold_<t>_macs`: the accuracy, and the mean multiply-accumulates of an image, when each one leaves at the
        first exit that is this sure; the heads that it passed are counted.
        """
        assert isinstance(student, Backbone)
        network = MultiExit(student, self._heads()).eval()
        found = [(network(images), labels, tuple(images.shape[1:])) for images, labels in batches()]
        logits = [torch.cat(parts) for parts in zip(*(exits for exits, _, _ in found), strict=True)]
        labels, shape = torch.cat([labels for _, labels, _ in found]), found[0][2]

        def top1(scores: torch.Tensor) -> float:
            return float((scores.argmax(dim=1) == labels).double().mean())

        results: dict[str, float] = {}
        for number, scores in enumerate(logits, start=1):
            alone = student if number == len(logits) else EarlyExit(student, number, self._heads()[number - 1])
            results[f"exit{number}_top1"] = top1(scores)
            results[f"exit{number}_macs"] = count_macs(alone.eval(), shape)  # type: ignore[arg-type]
        results["ensemble_top1"] = top1(mean_probabilities(logits))
        stacked = torch.stack(logits)
        macs = torch.tensor(network.exit_macs(shape), dtype=torch.float64, device=labels.device)
        for threshold in THRESHOLDS:
            exits = choose_exits(logits, threshold)
            chosen = stacked[exits, torch.arange(len(exits), device=exits.device)]
            results[f"threshold_{threshold:g}_top1"] = top1(chosen)
            results[f"threshold_{threshold:g}_macs"] = float(macs[exits].mean())
        return results

    def save(self, folder: Path, student: nn.Module, spec: ModelSpec) -> list[str]:
        """Write each early exit as a network of its own, `exits/exit<n>.safetensors`; return the names."""
        assert isinstance(student, Backbone)
        names = []
        for number, head in enumerate(self._heads(), start=1):
            name = f"exits/exit{number}.safetensors"
            save_model(
                folder / name, EarlyExit(student, number, head), replace(spec, model=f"{spec.model}@exit{number}")
            )
            names.append(name)
        return names
