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
            student stands still), or "" for none. Its length is the argument `init_epochs`, its learning rate and the
            loss's weight there are `init_lr` and `init_weight` (None, or no such argument: as in the recipe); whether
            the method stays in the stages after it is the argument `joint`.
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
            key="hint",
            title="Hints (FitNets)",
            axis="features",
            matches="the map at the end of stage 2, behind a convolutional regressor",
            paper="Romero et al., ICLR 2015 (arXiv:1412.6550)",
            cost="teacher forward, a convolution",
            weight="100, labels 1",
            implementation="tinykd.distill.hint:Hint",
            args={
                "reduction": "mean",
                "relu": None,
                "student_taps": None,
                "teacher_taps": None,
                "init_epochs": 0,
                "init_lr": None,
                "joint": True,
            },
            init="student",
        ),
        Method(
            key="at",
            title="Attention transfer",
            axis="features",
            matches="where in the image each stage is active",
            paper="Zagoruyko, Komodakis, ICLR 2017 (arXiv:1612.03928)",
            cost="teacher forward",
            weight="1000, labels 1",
            implementation="tinykd.distill.at:At",
            args={"mode": "code", "p": 2.0, "student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="nst",
            title="Neuron selectivity transfer",
            axis="features",
            matches="the distribution of each stage's channel maps",
            paper="Huang, Wang 2017 (arXiv:1707.01219)",
            cost="teacher forward, products of all pairs of channels",
            weight="50, labels 1",
            implementation="tinykd.distill.nst:Nst",
            args={"kernel": "poly", "degree": 2, "offset": 0.0, "student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="ft",
            title="Factor transfer",
            axis="features",
            matches="the last stage's map, paraphrased on one side and translated on the other",
            paper="Kim, Park, Kwak, NeurIPS 2018 (arXiv:1802.04977)",
            cost="teacher forward, six convolutions",
            weight="500 (variant paper) or 200 (variant repdistiller), labels 1",
            implementation="tinykd.distill.ft:Ft",
            args={
                "variant": "paper",
                "rate": 0.5,
                "student_taps": None,
                "teacher_taps": None,
                "init_epochs": 30,
                "init_lr": 0.01,
                "init_weight": 1.0,
            },
            init="method",
        ),
        Method(
            key="vid",
            title="Variational information distillation",
            axis="features",
            matches="each stage's map under a Gaussian that the student predicts",
            paper="Ahn et al., CVPR 2019 (arXiv:1904.05835)",
            cost="teacher forward, three 1x1 convolutions a stage",
            weight="1, labels 1",
            implementation="tinykd.distill.vid:Vid",
            args={"initial_variance": 5.0, "student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="reviewkd",
            title="Knowledge review",
            axis="features",
            matches="each stage's map with the student's deeper ones fused, at several scales",
            paper="Chen et al., CVPR 2021 (arXiv:2104.09044)",
            cost="teacher forward, two convolutions a stage",
            weight="0.6 to 5, labels 1, warmup_epochs 20 of 240",
            implementation="tinykd.distill.reviewkd:ReviewKd",
            args={"mid_channels": 512, "student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="fsp",
            title="Flow of the solution procedure",
            axis="relations",
            matches="products of the maps of neighbouring stages; needs equal channels",
            paper="Yim et al., CVPR 2017",
            cost="teacher forward",
            weight="50, labels 1",
            implementation="tinykd.distill.fsp:Fsp",
            args={
                "student_taps": None,
                "teacher_taps": None,
                "init_epochs": 30,
                "init_lr": None,
                "init_weight": 1.0,
                "joint": True,
            },
            init="student",
        ),
        Method(
            key="weight_hint",
            title="Weight hints",
            axis="weights",
            matches="the weights of each stage's last convolution, behind linear maps",
            paper="MIT 6.5940, lecture 9 (the literature's method there is hint)",
            cost="products of weights",
            weight="none published",
            implementation="tinykd.distill.weight_hint:WeightHint",
            args={"ridge": 1e-3, "student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="at_grad",
            title="Gradient attention transfer",
            axis="gradients",
            matches="gradients of the cross-entropy at the images, or at maps",
            paper="Zagoruyko, Komodakis, ICLR 2017, section 3.2 (arXiv:1612.03928)",
            cost="teacher forward and backward, student differentiated twice",
            weight="none published: a tenth of the cross-entropy, as the figure weight_for_tenth tells it",
            implementation="tinykd.distill.at_grad:AtGrad",
            args={"mode": "match", "normalize": "none", "student_taps": None, "teacher_taps": None},
        ),
        Method(
            key="ab",
            title="Activation boundaries",
            axis="sparsity",
            matches="which neurons fire, before the activation",
            paper="Heo et al., AAAI 2019 (arXiv:1811.03233)",
            cost="teacher forward, a 1x1 convolution a stage, in the init stage only",
            weight="0.003, labels 1",
            implementation="tinykd.distill.ab:Ab",
            args={
                "margin": 1.0,
                "student_taps": None,
                "teacher_taps": None,
                "init_epochs": 30,
                "init_lr": None,
                "joint": False,
            },
            init="student",
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
                "normalize": None,
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


KNOWN_AS = {
    "abound": "ab",
    "activation_boundary": "ab",
    "altacttransferloss": "ab",
    "atloss": "at",
    "attention": "at",
    "cckdloss": "cc",
    "correlation": "cc",
    "crdloss": "crd",
    "distloss": "dist",
    "factor": "ft",
    "fitnet": "hint",
    "fspkd": "fsp",
    "fsploss": "fsp",
    "ftloss": "ft",
    "hierarchicalcontextloss": "reviewkd",
    "kdloss": "kd",
    "logitstd": "logit_std",
    "pktloss": "pkt",
    "rkdloss": "rkd",
    "similarity": "sp",
    "spkdloss": "sp",
    "vidloss": "vid",
}
"""What RepDistiller, mdistiller and torchdistill call methods, in lower case -> the key here."""


def explain_unknown(key: str) -> str:
    """Return what is wrong with a method key that the registry does not have, and what was probably meant."""
    known = KNOWN_AS.get(key.lower(), key.lower() if key.lower() in METHODS else None)
    meant = f" It is called '{known}' here." if known else nearest(key, METHODS)
    return f"there is no distillation method '{key}'.{meant}"


def build_method(key: str, args: Mapping[str, Any] | None = None) -> DistillMethod:
    """Return the loss module of the method `key`.

    Raises:
        ConfigError: unknown method or argument, or a value outside its range.
    """
    if key not in METHODS:
        raise ConfigError(explain_unknown(key))
    row = METHODS[key]
    for name in args or {}:
        if name not in row.args:
            raise ConfigError(f"method '{key}' has no argument '{name}'.{nearest(name, row.args)}")
    module, _, name = row.implementation.partition(":")
    return getattr(importlib.import_module(module), name)(**{**row.args, **(args or {})})
