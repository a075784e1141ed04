"""Early exits: small heads at the ends of a network's stages, and the networks that end there.

Be Your Own Teacher (Zhang et al. 2019, arXiv:1905.08094) trains them; each one is a network of the registry,
`<student>@exit<n>`, that is exported and deployed like any student. A network with several exits can also answer an
easy image early: `MultiExit.infer` stops at the first exit that is sure enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tinykd.errors import ConfigError
from tinykd.models import build_model, find_entry
from tinykd.models.backbone import Backbone, StageTaps
from tinykd.models.count import count_macs
from tinykd.models.layers import ConvBn, PoolClassifier, init_weights
from tinykd.models.taps import tap_shapes

MapShape = tuple[int, int, int]


def stage_ends(model: Backbone) -> tuple[int, ...]:
    """Return where in `model.chain()` each stage ends, as indices.

    Raises:
        ConfigError: a stage ends inside of a part of the chain, or the stages are not in its order.
    """
    chain = model.chain()
    paths = [tap.partition(":") for tap in model.stage_taps().stages]
    if any(path not in chain or end == "input" for path, _, end in paths):
        raise ConfigError(f"the stages of {type(model).__name__} end inside of the parts of its chain")
    ends = tuple(chain.index(path) for path, _, _ in paths)
    if list(ends) != sorted(set(ends)) or ends[-1] == len(chain) - 1:
        raise ConfigError(f"the stages of {type(model).__name__} are not in the order of its chain")
    return ends


def stage_shapes(model: Backbone, input_shape: tuple[int, ...]) -> list[MapShape]:
    """Return (C, H, W) at the end of each stage, for images of shape (C, H, W)."""
    chain = model.chain()
    taps = [f"{chain[end]}:output" for end in stage_ends(model)]
    found = tap_shapes(model, taps, input_shape)
    return [(c, h, w) for c, h, w in (found[tap] for tap in taps)]


class ExitHead(nn.Module):
    """What turns the end of a stage into logits: separable convolutions, pooling and one linear layer.

    There is one convolution for each deeper stage. It goes to that stage's size, and to its channels or twice its own,
    whichever is less: the paper's bottleneck at the cost of a microcontroller. Only layers with an int8 form are used.

    Args:
        shapes: (C, H, W) at the end of this head's stage and of all deeper ones, square.
        num_classes: K.
    """

    def __init__(self, shapes: Sequence[MapShape], num_classes: int) -> None:
        super().__init__()
        channels, size, _ = shapes[0]
        self.convs = nn.Sequential()
        for deeper_channels, deeper_size, _ in shapes[1:]:
            stride = 2 if deeper_size < size else 1
            wide = min(deeper_channels, 2 * channels)
            depthwise = ConvBn(channels, channels, size, stride=stride, groups=channels)
            self.convs.append(nn.Sequential(depthwise, ConvBn(channels, wide, depthwise.out_size, kernel=1)))
            channels, size = wide, depthwise.out_size
        self.embedding_channels = channels
        self.classifier = PoolClassifier(channels, num_classes)
        init_weights(self)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the pooled embedding (N, embedding_channels)."""
        return self.classifier.flatten(self.classifier.pool(self.convs(x)))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        """Map the embedding (N, embedding_channels) to logits (N, K)."""
        return self.classifier.linear(embedding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to logits (N, K)."""
        return self.classifier(self.convs(x))


class EarlyExit(Backbone):
    """A network up to the end of one of its stages, and an exit's head; nothing deeper is in it.

    Args:
        student: the whole network; its first parts are shared, not copied.
        number: the exit: the stage (1, 2, ...) after which it ends, not the last one.
        head: maps the end of that stage to logits.
    """

    def __init__(self, student: Backbone, number: int, head: nn.Module) -> None:
        super().__init__()
        kept = student.chain()[: stage_ends(student)[number - 1] + 1]
        self.parts = nn.ModuleList(student.get_submodule(path) for path in kept)
        self.head = head
        where = student.stage_taps()
        places = {path: f"parts.{index}" for index, path in enumerate(kept)}
        self._taps = StageTaps(
            _moved([where.stem], places)[0],
            _moved(where.stages, places),
            _moved(where.preacts, places),
            "head.classifier.flatten",
        )

    def chain(self) -> tuple[str, ...]:
        """Return the parts in order."""
        return (*(f"parts.{index}" for index in range(len(self.parts))), "head")

    def stage_taps(self) -> StageTaps:
        """Return the feature maps that are left; the embedding is the head's."""
        return self._taps


def _moved(taps: Sequence[str], places: dict[str, str]) -> tuple[str, ...]:
    """Return those taps of the whole network that are left, as its parts: "block1.act:input" -> "parts.1.act:input"."""
    found = ((tap, path) for tap in taps for path in places if tap == path or tap.startswith((f"{path}.", f"{path}:")))
    return tuple(places[path] + tap[len(path) :] for tap, path in found)


def choose_exits(logits: Sequence[torch.Tensor], threshold: float) -> torch.Tensor:
    """Return the exit that each image takes, (N,) int64 from 0: the first whose largest probability is at least
    `threshold`, or the last one. 0 is always the first exit; above 1 is always the last.

    Args:
        logits: of all exits, the deepest last, (N, K) each.
        threshold: of the largest probability.
    """
    sure = torch.stack([z.softmax(dim=1).amax(dim=1) >= threshold for z in logits])
    sure[-1] = True
    return sure.int().argmax(dim=0)


class MultiExit(nn.Module):
    """A network with heads at the ends of all stages but the last; its own classifier is the last exit.

    Args:
        student: a network of several stages; its parts are shared, not copied.
        heads: one for each stage but the last.
    """

    def __init__(self, student: Backbone, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        chain, ends = student.chain(), stage_ends(student)
        if len(heads) != len(ends) - 1:
            raise ValueError(f"{len(heads)} heads do not fit {len(ends)} stages: one is needed for each but the last")
        cuts = (0, *(end + 1 for end in ends[:-1]), len(chain))
        self.segments = nn.ModuleList(
            nn.Sequential(*(student.get_submodule(path) for path in chain[start:stop]))
            for start, stop in zip(cuts, cuts[1:], strict=False)
        )
        self.heads = nn.ModuleList([*heads, nn.Identity()])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N, C, H, W) to the logits (N, K) of all exits, the network's own last."""
        logits = []
        for segment, head in zip(self.segments, self.heads, strict=True):
            x = segment(x)
            logits.append(head(x))
        return logits

    def infer(self, x: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer each image at the first exit that is sure enough; the stages behind it are not run for it.

        Args:
            x: (N, C, H, W).
            threshold: see `choose_exits`.

        Returns:
            logits (N, K), and the exit of each image, (N,) int64 from 0.
        """
        left = torch.arange(len(x), device=x.device)
        exits = torch.empty_like(left)
        answers: list[torch.Tensor] = []
        order: list[torch.Tensor] = []
        for number, (segment, head) in enumerate(zip(self.segments, self.heads, strict=True)):
            x = segment(x)
            logits = head(x)
            is_last = number == len(self.heads) - 1
            sure = torch.ones_like(left, dtype=torch.bool) if is_last else _is_sure(logits, threshold)
            answers.append(logits[sure])
            order.append(left[sure])
            exits[left[sure]] = number
            x, left = x[~sure], left[~sure]
            if not len(left):
                break
        return torch.cat(answers)[torch.cat(order).argsort()], exits

    def exit_macs(self, input_shape: tuple[int, ...]) -> list[int]:
        """Return the multiply-accumulates of one image that leaves at each exit: all stages and heads it has passed.

        Args:
            input_shape: (C, H, W) of one image.
        """
        total, macs, shape = 0, [], tuple(input_shape)
        for segment, head in zip(self.segments, self.heads, strict=True):
            total += count_macs(segment, shape)  # type: ignore[arg-type]
            shape = _output_shape(segment, shape)
            if not isinstance(head, nn.Identity):
                total += count_macs(head, shape)  # type: ignore[arg-type]
            macs.append(total)
        return macs


def _is_sure(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    return logits.softmax(dim=1).amax(dim=1) >= threshold


def _output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    holder = nn.Sequential(module)
    return tuple(tap_shapes(holder, ["0:output"], shape)["0:output"])


def build(name: str, num_classes: int, resolution: int, in_channels: int, **args: Any) -> nn.Module:
    """Return `<student>@exit<n>` with fresh weights; the arguments are the student's.

    Raises:
        ConfigError: no such student, one without stages, no such exit, or what the student's family refuses.
    """
    base, _, number = name.rpartition("@exit")
    entry = find_entry(base)
    if entry is None or entry.role != "student":
        raise ConfigError(f"model '{name}': '{base}' is no student", "See `tinykd list models`.")
    student = build_model(base, num_classes, resolution, in_channels, **args)
    if not isinstance(student, Backbone):
        raise ConfigError(f"model '{name}': {base} has no stages that could end in an exit")
    shapes = stage_shapes(student, (in_channels, resolution, resolution))
    if not 1 <= int(number) < len(shapes):
        raise ConfigError(
            f"model '{name}': {base} has exits 1 to {len(shapes) - 1}; the end of its last stage is {base} itself"
        )
    return EarlyExit(student, int(number), ExitHead(shapes[int(number) - 1 :], num_classes))
