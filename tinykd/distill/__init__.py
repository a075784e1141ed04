"""Distillation methods: one file each, and the one registry of them. Importing this package does not import torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinykd.errors import ConfigError, nearest

if TYPE_CHECKING:
    from tinykd.distill.base import DistillMethod


AXES = ("logits", "features", "relations", "weights", "gradients", "sparsity", "self", "online")
"""What a method matches, as the survey literature groups them; the last two need no ready teacher."""


@dataclass(frozen=True)
class Method:
    """One row of `tinykd list methods`.

    Attributes:
        key: the name in a recipe.
        title: one line for people.
        axis: one of AXES.
        matches: what of the student is compared with what of the teacher.
        paper: where the method comes from.
        cost: extra work per training step.
        weight: the usual weight in a recipe, and what it goes with.
        implementation: "module:class", imported when the method is used.
        args: the arguments a recipe may give, with their defaults.
        needs_teacher: False for methods in which the student teaches itself.
        init: what an init stage of its own trains: "student" (all that the loss reaches), "method" (its adapters, the
            student stands still), or "" for none. Its length is the argument `init_epochs`; whether the method stays
            in the stages after it is the argument `joint`.
        generations: the student is trained several times, each one teaching the next.
        with_labels: False for methods that replace the labels: the recipe's `label_weight` must be 0 beside them.
    """

    key: str
    title: str
    axis: str
    matches: str
    paper: str
    cost: str
    weight: str
    implementation: str
    args: Mapping[str, Any] = field(default_factory=dict)
    needs_teacher: bool = True
    init: str = ""
    generations: bool = False
    with_labels: bool = True

    @property
    def stages(self) -> str:
        """What the training consists of, in words."""
        if self.generations:
            return "generations"
        return {"": "1", "student": "init + task", "method": "adapters + task"}[self.init]


METHODS: dict[str, Method] = {
    method.key: method
    for method in (
        Method(
            key="kd",
            title="Knowledge distillation",
            axis="logits",
            matches="softened class probabilities",
            paper="Hinton, Vinyals, Dean, NeurIPS workshop 2014 (arXiv:1503.02531)",
            cost="teacher forward",
            weight="0.9, labels 0.1",
            implementation="tinykd.distill.kd:Kd",
            args={"temperature": 4.0},
        ),
        Method(
            key="logit_l2",
            title="Logit matching",
            axis="logits",
            matches="logits before the softmax, or probabilities",
            paper="Ba, Caruana, NeurIPS 2014 (arXiv:1312.6184)",
            cost="teacher forward",
            weight="1, labels 0",
            implementation="tinykd.distill.logit_l2:LogitL2",
            args={"on": "logits", "reduction": "sum_half", "center": False},
        ),
        Method(
            key="dkd",
            title="Decoupled knowledge distillation",
            axis="logits",
            matches="the target class and the other classes, weighted apart",
            paper="Zhao et al., CVPR 2022 (arXiv:2203.08679)",
            cost="teacher forward",
            weight="1, labels 1, warmup_epochs 20 of 240",
            implementation="tinykd.distill.dkd:Dkd",
            args={"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
        ),
        Method(
            key="dist",
            title="Distillation from a stronger teacher",
            axis="logits",
            matches="correlations of probabilities, between classes and between images",
            paper="Huang et al., NeurIPS 2022 (arXiv:2205.10536)",
            cost="teacher forward",
            weight="1, labels 1",
            implementation="tinykd.distill.dist:Dist",
            args={"beta": 1.0, "gamma": 1.0, "temperature": 1.0},
        ),
        Method(
            key="logit_std",
            title="Standardised logits",
            axis="logits",
            matches="softened class probabilities of z-scored logits",
            paper="Sun et al., CVPR 2024 (arXiv:2403.01427)",
            cost="teacher forward",
            weight="9, labels 0.1",
            implementation="tinykd.distill.logit_std:LogitStd",
            args={"temperature": 2.0},
        ),
        Method(
            key="func_match",
            title="Function matching",
            axis="logits",
            matches="class probabilities on the student's own view, mixup included",
            paper="Beyer et al., CVPR 2022 (arXiv:2106.05237)",
            cost="teacher forward",
            weight="1, labels 0",
            implementation="tinykd.distill.func_match:FuncMatch",
            with_labels=False,
        ),
        Method(
            key="defensive",
            title="Defensive distillation (broken as a defence: Carlini, Wagner, arXiv:1607.04311)",
            axis="logits",
            matches="softened class probabilities of the same model, trained at the same temperature",
            paper="Papernot et al., IEEE S&P 2016 (arXiv:1511.04508)",
            cost="teacher forward",
            weight="1, labels 0",
            implementation="tinykd.distill.defensive:Defensive",
            args={"temperature": 20.0},
            with_labels=False,
        ),
        Method(
            key="rkd",
            title="Relational knowledge distillation",
            axis="relations",
            matches="distances and angles between the images of a batch",
            paper="Park et al., CVPR 2019 (arXiv:1904.05068)",
            cost="teacher forward, N^3 angles",
            weight="1, labels 1",
            implementation="tinykd.distill.rkd:Rkd",
            args={
                "distance_weight": 25.0,
                "angle_weight": 50.0,
                "mode": "paper",
                "normalise": None,
                "student_taps": None,
                "teacher_taps": None,
            },
        ),
        Method(
            key="sp",
            title="Similarity-preserving distillation",
            axis="relations",
            matches="products of the last stage's maps between the images of a batch",
            paper="Tung, Mori, ICCV 2019 (arXiv:1907.09682)",
            cost="teacher forward",
            weight="3000, labels 1",
            implementation="tinykd.distill.sp:Sp",
            args={"student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="cc",
            title="Correlation congruence",
            axis="relations",
            matches="embeddings of neighbours in the batch, or correlations between its images",
            paper="Peng et al., ICCV 2019 (arXiv:1904.01802)",
            cost="teacher forward, two linear layers",
            weight="0.02, labels 1",
            implementation="tinykd.distill.cc:Cc",
            args={"form": "pairs", "dim": 128, "gamma": 0.4, "order": 2, "student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="pkt",
            title="Probabilistic knowledge transfer",
            axis="relations",
            matches="probabilities of being neighbours within a batch",
            paper="Passalis, Tefas, ECCV 2018 (arXiv:1803.10837)",
            cost="teacher forward",
            weight="30000, labels 1",
            implementation="tinykd.distill.pkt:Pkt",
            args={"student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="crd",
            title="Contrastive representation distillation",
            axis="relations",
            matches="an image's embedding, told apart from those of other classes",
            paper="Tian, Krishnan, Isola, ICLR 2020 (arXiv:1910.10699)",
            cost="teacher forward, two linear layers, products with all images' embeddings",
            weight="0.8, labels 1",
            implementation="tinykd.distill.crd:Crd",
            args={
                "dim": 128,
                "negatives": 16384,
                "temperature": 0.07,
                "momentum": 0.5,
                "student_taps": None,
                "teacher_taps": None,
            },
        ),
        Method(
            key="ban",
            title="Born-again networks",
            axis="self",
            matches="class probabilities of the student of the generation before",
            paper="Furlanello et al., ICML 2018 (arXiv:1805.04770)",
            cost="one training for each generation; forward of the last one",
            weight="1, labels 1",
            implementation="tinykd.distill.ban:Ban",
            args={"generations": 3, "variant": "kl"},
            needs_teacher=False,
            generations=True,
        ),
        Method(
            key="byot",
            title="Be your own teacher",
            axis="self",
            matches="class probabilities and pooled features of early exits and the network's end",
            paper="Zhang et al., ICCV 2019 (arXiv:1905.08094)",
            cost="a head at each stage",
            weight="1, labels 1",
            implementation="tinykd.distill.byot:Byot",
            args={
                "preset": "default",
                "alpha": None,
                "feature_weight": None,
                "temperature": None,
                "squared": None,
            },
            needs_teacher=False,
        ),
        Method(
            key="dml",
            title="Deep mutual learning",
            axis="online",
            matches="class probabilities of peers that learn at the same time",
            paper="Zhang et al., CVPR 2018 (arXiv:1706.00384)",
            cost="forward and backward of each peer; times the networks when sequential",
            weight="1, labels 1",
            implementation="tinykd.distill.dml:Dml",
            args={"peers": None, "variant": "kl", "update": "simultaneous"},
            needs_teacher=False,
        ),
        Method(
            key="one",
            title="On-the-fly native ensemble",
            axis="online",
            matches="softened class probabilities of branches and their gated ensemble",
            paper="Lan, Zhu, Gong, NeurIPS 2018 (arXiv:1806.04606)",
            cost="forward and backward of each branch",
            weight="1, labels 1",
            implementation="tinykd.distill.one:One",
            args={"branches": 3, "temperature": 3.0, "stage": None, "ramp_epochs": None},
            needs_teacher=False,
        ),
    )
}


def build_method(key: str, args: Mapping[str, Any] | None = None) -> DistillMethod:
    """Return the loss module of the method `key`.

    Raises:
        ConfigError: unknown method or argument, or a value outside its range.
    """
    if key not in METHODS:
        raise ConfigError(f"there is no distillation method '{key}'.{nearest(key, METHODS)}")
    row = METHODS[key]
    for name in args or {}:
        if name not in row.args:
            raise ConfigError(f"method '{key}' has no argument '{name}'.{nearest(name, row.args)}")
    module, _, name = row.implementation.partition(":")
    return getattr(importlib.import_module(module), name)(**{**row.args, **(args or {})})
