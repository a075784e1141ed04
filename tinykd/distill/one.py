"""On-the-fly native ensemble: branches of one network are their own teacher (Lan, Zhu, Gong 2018, arXiv:1806.04606)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from tinykd.distill.base import Batch, Context, DistillMethod, DistillStep, in_float32, require_integer, require_number
from tinykd.distill.kd import kd_loss
from tinykd.distill.networks import accuracies, fresh_copy, seed_of
from tinykd.errors import ConfigError
from tinykd.models.backbone import Backbone
from tinykd.models.early_exit import stage_ends
from tinykd.models.taps import record

RAMP_SHARE = 80 / 300
"""The ramp's part of the training: 80 of the paper's 300 epochs."""


def ramp_up(epoch: float, length: float) -> float:
    """Return the weight of the distillation at `epoch`: `exp(-5 (1 - epoch / length)^2)`, and 1 from `length` on."""
    if epoch >= length:
        return 1.0
    return math.exp(-5 * (1 - epoch / length) ** 2)


def ensemble_logits(branches: Sequence[torch.Tensor], gate: torch.Tensor) -> torch.Tensor:
    """Return the ensemble `z_e = sum_i g_i z_i`, (N, K) float32 or float64 (equation 4 of the paper).

    Args:
        branches: logits of the m branches, (N, K) each.
        gate: (N, m), rows sum to 1.
    """
    gate, *branches = in_float32(gate, *branches)
    return torch.einsum("nm,mnk->nk", gate, torch.stack(tuple(branches)))


def one_loss(
    branches: Sequence[torch.Tensor],
    gate: torch.Tensor,
    cross_entropy: Callable[[torch.Tensor], torch.Tensor],
    temperature: float,
    ramp: float = 1.0,
) -> torch.Tensor:
    """Return the loss of branches and ensemble less the first branch's label loss, a 0-d tensor.

    `sum_{i>1} CE(z_i) + CE(z_e) + ramp * T^2 * sum_i KL(softmax(z_e / T) || softmax(z_i / T))`: equation 8 of the
    paper, whose first CE is the student's own and comes from the recipe's label weight. Each divergence is summed over
    classes and averaged over images; no gradient flows from it into the ensemble.

    Args:
        branches: logits of the m branches, (N, K) each, the student's own first.
        gate: (N, m), rows sum to 1.
        cross_entropy: maps (N, K) logits to a 0-d loss.
        temperature: T, above 0.
        ramp: weight of the divergences.
    """
    with torch.autocast(gate.device.type, enabled=False):
        logits = in_float32(*branches)
        ensemble = ensemble_logits(logits, gate)
        labels = torch.stack([cross_entropy(z) for z in (*logits[1:], ensemble)]).sum()
        distilled = torch.stack([kd_loss(z, ensemble, temperature) for z in logits]).sum()
        return labels + ramp * distilled


class Gate(nn.Module):
    """How much each branch counts for each image: softmax(ReLU(BN(FC(pooled features)))) (section 3.1 of the paper)."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, shared: torch.Tensor) -> torch.Tensor:
        """Map the shared features (N, C, H, W) to shares (N, m) float32 that sum to 1."""
        scores = self.norm(self.linear(shared.mean(dim=(2, 3)))).relu()
        return in_float32(scores)[0].softmax(dim=1)


class One(DistillMethod):
    """Branches beside the student's own tail, from one trunk, and a gate; what is deployed is the plain student.

    The first branch is the student itself; the others are copies of its last stages and classifier with fresh weights,
    each from a seed of its own. Branches and gate belong to the method and are never exported. The weight of the paper
    is 1.

    Args:
        branches: m, the student's own included, at least 1 (which is no ensemble).
        temperature: T of the distillation, above 0.
        stage: the first stage (1, 2, ...) that is not shared; None is the last one.
        ramp_epochs: epochs until the distillation has its full weight, at least 0; None is 80 of 300 of the training's.

    Raises:
        ConfigError: an argument outside its range.
    """

    local = True
    averaged = True

    def __init__(
        self,
        branches: int = 3,
        temperature: float = 3.0,
        stage: int | None = None,
        ramp_epochs: float | None = None,
    ) -> None:
        super().__init__()
        require_integer("one", "branches", branches, least=1)
        require_number("one", "temperature", temperature, above=0)
        if stage is not None:
            require_integer("one", "stage", stage, least=1)
        if ramp_epochs is not None:
            require_number("one", "ramp_epochs", ramp_epochs, least=0)
        self.count, self.stage, self.ramp_epochs = branches, stage, ramp_epochs
        self.temperature = float(temperature)
        self.branches = nn.ModuleList()
        self.gate: Gate | None = None

    def setup(self, context: Context) -> None:
        """Split the student's chain and copy its tail.

        Raises:
            ConfigError: the student is no chain of stages, or has too few of them.
        """
        student = context.student.module
        if not isinstance(student, Backbone):
            raise ConfigError(f"one: {context.student.name} is no chain of stages that could be shared")
        ends = stage_ends(student)
        stage = len(ends) if self.stage is None else self.stage
        if stage > len(ends):
            raise ConfigError(f"one: stage is {stage}, but {context.student.name} has {len(ends)} stages")
        chain = student.chain()
        # The trunk ends where the stage before does; before the first stage that is the stem.
        stem = student.stage_taps().stem.partition(":")[0]
        if stage == 1 and stem not in chain:
            raise ConfigError(f"one: the stem of {context.student.name} is no part of its chain: give a stage above 1")
        split = ends[stage - 2] if stage > 1 else chain.index(stem)
        self.student_taps = (f"{chain[split]}:output",)
        self.branches = nn.ModuleList(
            nn.Sequential(
                *(
                    fresh_copy(student.get_submodule(path), seed_of(context.seed, number) + place)
                    for place, path in enumerate(chain[split + 1 :])
                )
            )
            for number in range(1, self.count)
        )
        channels = context.student.shapes(self.student_taps)[self.student_taps[0]][0]
        self.gate = Gate(channels, self.count)

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor."""
        shared = step.student_features[self.student_taps[0]]
        logits, gate = self._run(step.student_logits, shared)
        length = RAMP_SHARE * step.epochs if self.ramp_epochs is None else self.ramp_epochs
        return one_loss(logits, gate, step.cross_entropy, self.temperature, ramp_up(step.epoch, length))

    def _run(self, student_logits: torch.Tensor, shared: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the logits of all branches, and the gate."""
        assert self.gate is not None, "setup comes first"
        return [student_logits, *(branch(shared) for branch in self.branches)], self.gate(shared)

    def figures(self, step: DistillStep) -> dict[str, torch.Tensor]:
        """Return the gate's mean entropy in nats: log(m) when all branches count alike, 0 when it uses only one."""
        assert self.gate is not None, "setup comes first"
        training = self.gate.training
        gate = self.gate.eval()(step.student_features[self.student_taps[0]])
        self.gate.train(training)
        return {"gate_entropy": -torch.special.xlogy(gate, gate).sum(dim=1).mean()}

    def results(self, student: nn.Module, batches: Callable[[], Iterator[Batch]]) -> dict[str, float]:
        """Return the test accuracy 0..1 of each branch (the first is the student) and of the ensemble (ONE-E)."""

        def predict(images: torch.Tensor) -> dict[str, torch.Tensor]:
            with record(student, self.student_taps) as features:
                own = student(images)
            logits, gate = self._run(own, features[self.student_taps[0]])
            named = {f"branch{number}_top1": z for number, z in enumerate(logits, start=1)}
            return {**named, "ensemble_top1": ensemble_logits(logits, gate)}

        return accuracies(predict, batches)
