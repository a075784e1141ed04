"""Deep mutual learning: several networks learn from the labels and from each other (Zhang et al. 2018,
arXiv:1706.00384)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tinykd.distill.base import Batch, Context, DistillMethod, DistillStep, in_float32, require_choice
from tinykd.distill.networks import accuracies, divergence, fresh_copy, mean_probabilities, seed_of
from tinykd.errors import ConfigError

VARIANTS = ("kl", "mean")
UPDATES = ("simultaneous", "sequential")


def mutual_loss(logits: Sequence[torch.Tensor], number: int, variant: str = "kl") -> torch.Tensor:
    """Return what network `number` learns from its peers, a 0-d tensor: 0 where all agree.

    "kl" is `1 / (M - 1) * sum_l KL(p_l || p_number)` over the M - 1 peers l (equation 7 of the paper), "mean" is the
    divergence from the mean of the peers' probabilities (equation 8, DML_e). Probabilities at temperature 1; each
    divergence is summed over classes and averaged over images. No gradient flows into the peers.

    Args:
        logits: of the M >= 2 networks, (N, K) each.
        number: which of them learns.
        variant: "kl" or "mean".
    """
    with torch.autocast(logits[0].device.type, enabled=False):
        # `divergence` lets no gradient into the peers.
        own, *peers = in_float32(logits[number], *(z for i, z in enumerate(logits) if i != number))
        if variant == "mean":
            return divergence(own, mean_probabilities(peers))
        return torch.stack([divergence(own, peer.softmax(dim=1)) for peer in peers]).mean()


class Dml(DistillMethod):
    """The student's mutual loss, and the whole loss of each of its peers: labels and mutual loss, of weight 1.

    The peers are trained by the same optimizer: as each one's targets are detached from the others, that equals one
    optimizer each with the same settings. They start from seeds of their own, are saved in checkpoints and never
    exported. The weight of the paper is 1 for everything.

    Args:
        peers: the other networks as {"model": name, "args": {...}} of the registry; None is one more of the student.
        variant: see `mutual_loss`.
        update: "simultaneous" takes one step for all networks on the same predictions, as most code does;
            "sequential" one after another, each on fresh predictions of all (algorithm 1 of the paper).

    Raises:
        ConfigError: an argument outside its range, or a peer that cannot be built.
    """

    local = True
    averaged = True

    def __init__(
        self,
        peers: Sequence[Mapping[str, Any]] | None = None,
        variant: str = "kl",
        update: str = "simultaneous",
    ) -> None:
        super().__init__()
        require_choice("dml", "variant", variant, VARIANTS)
        require_choice("dml", "update", update, UPDATES)
        self.wanted = None if peers is None else _check_peers(peers)
        self.variant = variant
        self.sequential = update == "sequential"
        self.peers = nn.ModuleList()

    def setup(self, context: Context) -> None:
        """Build the peers, each with a seed of its own.

        Raises:
            ConfigError: what the registry refuses.
        """
        if self.wanted is None:
            peers = [fresh_copy(context.student.module, seed_of(context.seed, 1))]
        else:
            peers = [
                _build_peer(context.build, peer, seed_of(context.seed, number), number)
                for number, peer in enumerate(self.wanted, start=1)
            ]
        self.peers = nn.ModuleList(peers)
        self.turns = 1 + len(peers) if self.sequential else 1

    def forward(self, step: DistillStep) -> torch.Tensor:
        """Return the loss of one step, a 0-d tensor; updating sequentially, that of the network whose turn it is."""
        if self.sequential:
            return self._loss_of(step.turn, step, self._predict(step, learning=step.turn))
        logits = self._predict(step)
        losses = [self._loss_of(number, step, logits) for number in range(len(logits))]
        return torch.stack(losses).sum()

    def _predict(self, step: DistillStep, learning: int | None = None) -> list[torch.Tensor]:
        """Return the logits of student and peers; with `learning`, only that network's have a gradient."""
        logits = [step.student_logits if learning in (None, 0) else step.student_logits.detach()]
        for number, peer in enumerate(self.peers, start=1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and learning in (None, number)):
                logits.append(peer(step.images))
        return logits

    def _loss_of(self, number: int, step: DistillStep, logits: list[torch.Tensor]) -> torch.Tensor:
        loss = mutual_loss(logits, number, self.variant)
        # The student's label loss is the objective's.
        return loss if number == 0 else loss + step.cross_entropy(logits[number])

    def results(self, student: nn.Module, batches: Callable[[], Iterator[Batch]]) -> dict[str, float]:
        """Return the test accuracy 0..1 of each peer and of all networks together (mean probabilities)."""

        def predict(images: torch.Tensor) -> dict[str, torch.Tensor]:
            peers = [peer(images) for peer in self.peers]
            named = {f"peer{number}_top1": logits for number, logits in enumerate(peers, start=1)}
            return {**named, "ensemble_top1": mean_probabilities([student(images), *peers])}

        return accuracies(predict, batches)


def _check_peers(peers: object) -> list[tuple[str, dict[str, Any]]]:
    """Return (model, args) of each peer."""
    if not isinstance(peers, Sequence) or isinstance(peers, str) or not peers:
        raise ConfigError(f"dml: peers must be a list of at least one {{model: ..., args: ...}}, not {peers!r}")
    checked = []
    for peer in peers:
        if not isinstance(peer, Mapping) or not isinstance(peer.get("model"), str) or set(peer) - {"model", "args"}:
            raise ConfigError(f"dml: a peer must be {{model: name, args: {{...}}}}, not {peer!r}")
        args = peer.get("args") or {}
        if not isinstance(args, Mapping):
            raise ConfigError(f"dml: args of peer '{peer['model']}' must be a mapping, not {args!r}")
        checked.append((peer["model"], dict(args)))
    return checked


def _build_peer(
    build: Callable[..., nn.Module] | None, peer: tuple[str, dict[str, Any]], seed: int, number: int
) -> nn.Module:
    if build is None:
        raise ConfigError("dml: peers by name need the registry of models, which is not at hand here")
    model, args = peer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return build(model, **args).train()
        except ConfigError as error:
            raise ConfigError(f"dml: peer {number}: {error.message}") from error
