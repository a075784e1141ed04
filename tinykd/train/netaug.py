"""Network augmentation: a tiny student is trained inside of wider networks that share its weights.

Cai et al., ICLR 2022 (arXiv:2110.08890), with the choices of the code released with it where the paper leaves them
open. Each step runs the student itself and one wider network around it, drawn anew, and takes one optimizer step on
`gradient(student) + alpha * gradient(wider)`. What is saved is the student alone, in its plain classes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from tinykd.config import NetAugConfig, Recipe, TrainConfig
from tinykd.distill.base import DistillMethod
from tinykd.distill.weight_hint import WeightHint
from tinykd.errors import ConfigError
from tinykd.models.taps import tap_shapes
from tinykd.models.widths import (
    KINDS,
    Sortable,
    is_sorted_inside,
    list_slots,
    list_sortables,
    resolve_widths,
    weight_of,
)
from tinykd.train.dynamic import make_dynamic, set_widths, slice_into
from tinykd.train.ema import Ema
from tinykd.train.netaug_plan import draw_widths, kinds_at, largest_widths, pass_cost
from tinykd.train.passes import Passes
from tinykd.train.place import Place
from tinykd.train.recalibrate import recalibrate
from tinykd.train.stages import list_stages

_WEIGHTS, _SUBSET = 102, 103
"""Which of the seed's random streams new weights and the images of the recalibration come from."""


@torch.no_grad()
def sort_channels(
    model: nn.Module,
    sortables: Sequence[Sortable],
    optimizer: torch.optim.Optimizer | None = None,
    ema: Ema | None = None,
) -> None:
    """Put the inner channels of each block into descending order of the weights that read them (L1 norm).

    The student has the first ones, so it gets the most important. The widest network's function stays as it is. What
    belongs to a channel moves with it: batch norm statistics, the optimizer's moments and the averaged weights.
    """
    models = [model] if ema is None else [model, ema.model]
    for sortable in sortables:
        first = weight_of(model, sortable.readers[0])
        importance = first.double().abs().sum(dim=(0, *range(2, first.ndim)))
        order = importance.argsort(descending=True, stable=True)
        for owner in models:
            for path in sortable.carriers:
                layer = owner.get_submodule(path)
                for tensor in (*layer.parameters(), *layer.buffers()):
                    if tensor.ndim:
                        _permute(tensor, 0, order, optimizer)
            for path in sortable.readers:
                _permute(weight_of(owner, path), 1, order, optimizer)


def _permute(tensor: torch.Tensor, dim: int, order: torch.Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    moments = optimizer.state.get(tensor, {}).values() if optimizer is not None else ()
    for each in (tensor, *moments):
        if isinstance(each, torch.Tensor) and each.shape == tensor.shape:
            each.copy_(each.index_select(dim, order))


def check_netaug(recipe: Recipe, student: nn.Module, methods: Mapping[str, DistillMethod]) -> None:
    """Refuse what network augmentation cannot be combined with.

    Args:
        recipe: the experiment.
        student: its plain student.
        methods: those of the task, set up.

    Raises:
        ConfigError: a student whose widths are not known, or the methods and stages that do not go with it.
    """
    config = recipe.netaug
    if config is None:
        return
    list_slots(student)
    faults = []
    if config.init == "uniform" and len(list_stages(recipe)) > 1:
        faults.append("netaug.init: 'uniform' would draw anew what the stages before the task have learnt; use student")
    for name, method in methods.items():
        if method.averaged:
            faults.append(f"netaug: '{name}' has networks beside the student, which a second pass would train twice")
        if method.needs_input_grad and method.student_taps:
            faults.append(f"netaug: '{name}' differentiates at taps, of which a wider network has more channels")
        if config.sort and isinstance(method, WeightHint):
            faults.append(f"netaug.sort: would move the weights that '{name}' compares from place to place; use false")
        inside = [tap for tap in method.student_taps if is_sorted_inside(list_sortables(student), tap)]
        if config.sort and inside:
            faults.append(
                f"netaug.sort: the channels at {', '.join(inside)} of '{name}' would change places; use false"
            )
    if faults:
        raise ConfigError("\n".join(faults))


class NetAug(Passes):
    """Two passes a step: the student, and one network around it.

    Args:
        config: what is augmented, and until when.
        train: of the stage.
        place: the training images, from which batch norm is recalibrated, and where all of it happens.

    Raises:
        ConfigError: from `begin`, a student that cannot be augmented.
    """

    def __init__(self, config: NetAugConfig, train: TrainConfig, place: Place) -> None:
        self.config, self.train, self.place = config, train, place
        dataset = place.dataset
        self.input_shape = (dataset.channels, dataset.resolution, dataset.resolution)
        self.channels: dict[str, int] = {}

    def begin(self, model: nn.Module) -> nn.Module:
        """Widen the student in place and return it; a copy of what it was waits for its weights."""
        # An earlier stage may have left it synchronised; the copy is run by each process on its own.
        self.place.cluster.part_batch_norm(model)
        self.slots, self.sortables = list_slots(model), list_sortables(model)
        self.base = resolve_widths(self.slots, {})
        self.plain = copy.deepcopy(model).requires_grad_(True)
        generator = torch.Generator().manual_seed((self.train.seed << 8) + _WEIGHTS)
        redraw = self.config.init == "uniform"
        make_dynamic(model, self.slots, largest_widths(self.slots, self.config), generator, redraw)
        set_widths(model, self.base)
        self.model = model
        self._announce()
        return model

    def _announce(self) -> None:
        """Say what each phase costs beside plain training."""
        epochs = range(self.train.epochs)
        for kinds, phase in itertools.groupby(epochs, key=lambda epoch: kinds_at(self.config, self.train, epoch)):
            first, *rest = phase
            last = rest[-1] if rest else first
            cost = f"{1 + pass_cost(self.plain, self.config, self.input_shape, kinds, 200)[0]:.2f}" if kinds else "1"
            what = " and ".join(f"{kind} factors" for kind in kinds) or "no wider network"
            self.place.progress.note(f"netaug: epochs {first + 1} to {last + 1}, {what}: {cost} x the student's MACs")

    def start_epoch(self, epoch: int, optimizer: torch.optim.Optimizer, ema: Ema | None) -> None:
        """Sort the channels while both kinds are augmented."""
        if self.config.sort and kinds_at(self.config, self.train, epoch) == KINDS:
            sort_channels(self.model, self.sortables, optimizer, ema)

    def run(self, step: int, steps_per_epoch: int) -> Iterator[float]:
        """Yield 1 with the model as the student, then alpha with the model as an augmented network."""
        set_widths(self.model, self.base)
        yield 1.0
        kinds = kinds_at(self.config, self.train, step // steps_per_epoch)
        if kinds:
            set_widths(self.model, draw_widths(self.slots, self.config, kinds, (self.train.seed, step)))
            yield self.config.alpha
            set_widths(self.model, self.base)

    def narrow(self, features: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Cut features to the first channels, as many as the student has there."""
        unknown = [tap for tap in features if tap not in self.channels]
        if unknown:
            shapes = tap_shapes(self.plain, unknown, self.input_shape)
            self.channels.update({tap: shape[0] for tap, shape in shapes.items()})
        return {tap: feature[:, : self.channels[tap]] for tap, feature in features.items()}

    def ready(self, model: nn.Module) -> nn.Module:
        """Return the plain student with the first channels of a dynamic model and recalibrated batch norms."""
        student = copy.deepcopy(self.plain)
        slice_into(student, model)
        recalibrate(student, self._batches(), self.place.cluster)
        return student

    def finish(self, model: nn.Module) -> nn.Module:
        """Return the plain student."""
        return self.ready(model)

    def _batches(self) -> Iterator[torch.Tensor]:
        """Yield this process's share of the images that recalibrate batch norm: always the same, nothing random."""
        images = self.place.dataset.train.images
        rng = np.random.default_rng((_SUBSET, self.train.seed))
        chosen = np.sort(rng.permutation(len(images))[: self.config.calibration_images])
        cluster = self.place.cluster
        for part in np.array_split(chosen, -(-len(chosen) // self.train.batch_size))[cluster.rank :: cluster.size]:
            yield self.place.augment.normalise(torch.from_numpy(images[part]).to(self.place.device))
