"""The one training loop, for teachers and students alike.

On the CPU a training that was stopped anywhere and resumed ends with the same bits as one that ran through: the order
of an epoch's images follows from the seed and the epoch, and everything else that changes is in the checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tinykd.config import TrainConfig
from tinykd.data.augment import Augment
from tinykd.data.base import Dataset, Split
from tinykd.data.mixup import mixup
from tinykd.distill.base import DistillStep
from tinykd.errors import ConfigError
from tinykd.models.taps import record
from tinykd.train.checkpoint import Checkpoint, load_checkpoint, optimizer_state, restore_optimizer, save_checkpoint
from tinykd.train.cluster import SOLO, Cluster
from tinykd.train.cost import Cost
from tinykd.train.ema import Ema
from tinykd.train.journal import Journal
from tinykd.train.objective import Objective
from tinykd.train.passes import Passes
from tinykd.train.progress import Progress
from tinykd.train.schedule import learning_rate
from tinykd.train.stop import StopRequested, stop_signals

CHECKPOINT = "checkpoint.safetensors"
Trained = Literal["student", "methods"] | tuple[str, ...]


@dataclass(frozen=True)
class FitResult:
    """The trained module in eval mode (its averaged weights where the recipe asks for them) and how it went.

    `seconds` is training time over all sittings; `top1_val` is None without validation images; `cost` is what
    `tinykd.train.cost.Cost.figures` tells.
    """

    model: nn.Module
    seconds: float
    steps_per_s: float
    top1_val: float | None
    cost: dict[str, Any]


class DeviceSplit:
    """A split as tensors on the device: images uint8 (N, H, W, C), labels int64 (N,)."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
        self.labels = torch.from_numpy(np.ascontiguousarray(split.labels)).to(device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def batches(self, augment: Augment, batch_size: int = 500) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (images, labels) in order, the images normalised (N, C, H, W) float32 with nothing random."""
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            yield augment.normalise(self.images[part]), self.labels[part]


@torch.no_grad()
def evaluate(model: nn.Module, split: DeviceSplit, augment: Augment) -> float | None:
    """Return the top-1 accuracy 0..1 in eval mode and float32; None for an empty split. The mode is put back."""
    if not len(split):
        return None
    training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    for images, labels in split.batches(augment):
        correct += (model(images).argmax(1) == labels).sum()
    model.train(training)
    return int(correct) / len(split)


def fit(
    model: nn.Module,
    objective: Objective,
    dataset: Dataset,
    augment: Augment,
    config: TrainConfig,
    *,
    folder: Path,
    title: str,
    progress: Progress,
    device: torch.device,
    passes: Passes | None = None,
    trains: Trained = "student",
    cluster: Cluster = SOLO,
) -> FitResult:
    """Train `model` in place until `config.epochs`, from the checkpoint in `folder` when there is one.

    Args:
        model: maps normalised (N, C, H, W) float32 to logits.
        objective: what is minimised; its own parameters are trained too.
        dataset: trained on its train split, watched on val; test is not touched.
        augment: makes the model's input from uint8 images.
        config: how.
        folder: gets `metrics.jsonl`, `tensorboard/` and, until the end, the checkpoint.
        title: what the progress display calls it.
        progress: the display.
        device: where all of it happens.
        passes: which passes each step makes; None is one through the model.
        trains: "student" (and the objective's parameters), "methods" (those alone), or paths of the model's modules.
        cluster: the processes that share each batch.

    Raises:
        ConfigError: the loss became infinite or NaN, or the batch cannot be shared evenly.
        StopRequested: SIGINT or SIGTERM; the checkpoint is written.
        ArtifactError: the folder cannot be written, or the checkpoint is broken.
    """
    run = _Run(model, objective, dataset, augment, config, folder, device, passes or Passes(), trains, cluster)
    run.restore()
    progress.start(title, config.epochs, run.steps_per_epoch, run.step)
    journal_folder = folder if cluster.leads else None
    done = run.step // run.steps_per_epoch
    with Journal(journal_folder, done) as journal, stop_signals() as stop, _fast_kernels(device):
        clock = time.perf_counter()
        while run.step < run.total_steps:
            run.train_step()
            progress.step(run.step - 1, None)
            if run.step % run.steps_per_epoch == 0:
                record = run.finish_epoch()
                now = time.perf_counter()
                run.seconds, clock = run.seconds + now - clock, now
                journal.write({**record, "seconds": round(run.seconds, 3)})
                run.save()
                progress.epoch(record)
            if cluster.any(bool(stop)) and run.step < run.total_steps:
                run.seconds += time.perf_counter() - clock
                run.save()
                raise StopRequested(stop[0] if stop else 15, run.checkpoint)
    run.average_networks()
    trained = run.passes.finish(run.averaged_model()).eval()
    val = evaluate(trained, run.val, augment)
    return FitResult(trained, run.seconds, run.total_steps / max(run.seconds, 1e-9), val, run.cost.figures())


class _Run:
    """The state of one training, and what happens to it."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        dataset: Dataset,
        augment: Augment,
        config: TrainConfig,
        folder: Path,
        device: torch.device,
        passes: Passes,
        trains: Trained,
        cluster: Cluster,
    ) -> None:
        self.config, self.device, self.augment = config, device, augment
        self.passes, self.cluster = passes, cluster
        self.checkpoint = folder / CHECKPOINT
        # channels_last is for the GPU alone: with it, the backward pass of strided 1x1 convolutions on the CPU (torch
        # 2.13) has written outside of its buffers, which shows as different bits from run to run and as crashes.
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        model = passes.begin(model.to(device))
        self.model = model.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.model.train(trains != "methods")
        self.objective = objective.to(device).train()
        for part in (self.model, self.objective):
            cluster.synchronise_batch_norm(part)
        self.train, self.val = DeviceSplit(dataset.train, device), DeviceSplit(dataset.val, device)
        self.batch_size = min(config.batch_size, len(self.train))
        self.part = cluster.part(self.batch_size)
        self.steps_per_epoch = len(self.train) // self.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.cost = Cost(device)
        self.order = torch.empty(0, dtype=torch.int64, device=device)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        networks = self.objective.networks()
        self.networks_ema = Ema(networks, config.ema) if config.ema and len(networks) else None
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(config.seed)
        _choose_trained(self.model, trains)
        self.parameters = [p for m in (self.model, self.objective) for p in m.parameters() if p.requires_grad]
        self.optimizer = _make_optimizer(self.parameters, config)
        # Sums over the epoch so far: loss, correct, then the parts of the loss.
        self.sums = torch.zeros(2 + len(objective.part_names), dtype=torch.float64, device=device)
        self.figures: dict[str, float] = {}
        self.amp, self.amp_dtype = _mixed_precision(config, device)
        self.scaler = torch.amp.GradScaler(enabled=self.amp and self.amp_dtype is torch.float16)

    def averaged_model(self) -> nn.Module:
        return self.model if self.ema is None else self.ema.model

    def average_networks(self) -> None:
        """Give the networks beside the student their averaged weights, as `averaged_model` has the student's."""
        if self.networks_ema is not None:
            self.objective.networks().load_state_dict(self.networks_ema.model.state_dict())

    def train_step(self) -> None:
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0 or not len(self.order):
            if position == 0:
                self.passes.start_epoch(epoch, self.optimizer, self.ema)
            self.order = self._epoch_order(epoch)
        self.cost.start_step(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.steps_per_epoch)
        with self.cost.part("data"):
            step = self._draw(position)
        with self.cost.part("teacher"), self._autocast():
            taught = self.objective.teach(step.images)
        step = replace(step, teacher_logits=taught.logits, teacher_features=taught.features)
        for turn in range(self.objective.turns):
            self._take_turn(replace(step, turn=turn), last=position == self.steps_per_epoch - 1)
        if self.ema is not None:
            with self.cost.part("update"):
                self.ema.update(self.model, self.step)
                if self.networks_ema is not None:
                    self.networks_ema.update(self.objective.networks(), self.step)
        self.step += 1

    def _take_turn(self, step: DistillStep, last: bool) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for number, weight in enumerate(self.passes.run(self.step, self.steps_per_epoch)):
            with self.cost.part("augmented" if number else "student"):
                with self._autocast():
                    with record(self.model, self.objective.student_taps) as features:
                        logits = self.model(step.images)
                    seen = self.passes.narrow(features) if number else features
                    step = replace(step, student_logits=logits, student_features=seen)
                    loss, parts = self.objective(step)
                self.scaler.scale(loss if weight == 1 else weight * loss).backward()
            if number == 0 and step.turn == 0:
                correct = (logits.detach().argmax(1) == step.labels).sum()
                self.sums += torch.stack([loss.detach(), correct, *parts]).double()
                if last:
                    self.figures = {key: float(value) for key, value in self.objective.figures(step).items()}
        with self.cost.part("update"):
            self.cluster.average_gradients(self.parameters)
            if self.config.clip_norm:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp)

    def _draw(self, position: int) -> DistillStep:
        """Return this process's part of the batch; every process draws the whole one, and so the same one."""
        index = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        labels = self.train.labels[index]
        images = self.augment(self.train.images[index], self.generator)
        other_labels = share = None
        if self.augment.config.mixup:
            seed = (self.config.seed, self.step)
            images, other_labels, share = mixup(images, labels, self.augment.config.mixup, seed)
        images = images[self.part].contiguous(memory_format=self.memory_format)
        if self.objective.needs_input_grad:
            images.requires_grad_(True)
        return DistillStep(
            images=images,
            labels=labels[self.part],
            student_logits=images,  # not known yet
            index=index[self.part],
            other_labels=None if other_labels is None else other_labels[self.part],
            share=share,
            epoch=self.step / self.steps_per_epoch,
            epochs=self.config.epochs,
            generator=self.generator,
            label_loss=self.objective.label_loss,
            run_student=self.model,
            run_teacher=self.objective.teacher,
        )

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        # On the CPU whatever the device, so that a GPU sees the images in the same order.
        generator = torch.Generator().manual_seed((self.config.seed << 20) + epoch)
        return torch.randperm(len(self.train), generator=generator).to(self.device)

    def finish_epoch(self) -> dict[str, Any]:
        epoch = self.step // self.steps_per_epoch
        sums = (self.cluster.sum(self.sums) / self.cluster.size).tolist()
        loss = sums[0] / self.steps_per_epoch
        if not math.isfinite(loss):
            raise ConfigError(
                f"train: the loss is {loss} in epoch {epoch} (lr {self.optimizer.param_groups[0]['lr']:.4g})",
                "Lower train.lr, raise train.warmup_epochs, or set train.clip_norm; then train again with --restart.",
            )
        record: dict[str, Any] = {
            "epoch": epoch,
            "step": self.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
            "top1_train": sums[1] / (self.steps_per_epoch * (self.batch_size // self.cluster.size)),
        }
        for name, total in zip(self.objective.part_names, sums[2:], strict=True):
            record[f"loss_{name}"] = total / self.steps_per_epoch
        record.update(self.figures)
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            record["top1_val"] = evaluate(self.passes.ready(self.averaged_model()), self.val, self.augment)
        self.sums.zero_()
        return record

    def save(self) -> None:
        if not self.cluster.leads:
            return
        optimizer_tensors, optimizer_facts = optimizer_state(self.optimizer)
        groups = {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "ema": {} if self.ema is None else self.ema.model.state_dict(),
            "networks_ema": {} if self.networks_ema is None else self.networks_ema.model.state_dict(),
            "optimizer": optimizer_tensors,
            "loop": {"sums": self.sums, "augment_rng": self.generator.get_state(), "cpu_rng": torch.get_rng_state()},
        }
        if self.device.type == "cuda":
            groups["loop"]["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "device": self.device.type,
            "optimizer": optimizer_facts,
            "scaler": self.scaler.state_dict(),
            "cost": self.cost.seconds,
        }
        save_checkpoint(self.checkpoint, groups, facts)

    def restore(self) -> None:
        saved = load_checkpoint(self.checkpoint)
        if saved is None:
            return
        self._restore_tensors(saved)
        self.step, self.seconds = saved.facts["step"], saved.facts["seconds"]
        self.cost.seconds = saved.facts["cost"]
        restore_optimizer(self.optimizer, saved.group("optimizer"), saved.facts["optimizer"])
        if saved.facts["scaler"]:
            self.scaler.load_state_dict(saved.facts["scaler"])

    def _restore_tensors(self, saved: Checkpoint) -> None:
        self.model.load_state_dict(saved.group("model"))
        self.objective.load_state_dict(saved.group("objective"))
        if self.ema is not None:
            self.ema.model.load_state_dict(saved.group("ema"))
        if self.networks_ema is not None:
            self.networks_ema.model.load_state_dict(saved.group("networks_ema"))
        loop = saved.group("loop")
        self.sums.copy_(loop["sums"])
        torch.set_rng_state(loop["cpu_rng"])
        if saved.facts["device"] == self.device.type:
            self.generator.set_state(loop["augment_rng"])
            if "cuda_rng" in loop:
                torch.cuda.set_rng_state(loop["cuda_rng"], self.device)


def _mixed_precision(config: TrainConfig, device: torch.device) -> tuple[bool, torch.dtype]:
    """Return whether to use mixed precision, and in which type: bfloat16 where there are instructions for it."""
    if device.type == "cuda":
        bfloat16 = torch.cuda.is_bf16_supported(False)
        return config.amp is not False, torch.bfloat16 if bfloat16 else torch.float16
    return config.amp is True and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()), torch.bfloat16


def _choose_trained(model: nn.Module, trains: Trained) -> None:
    """Let the parameters that a stage trains require a gradient, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(
            trains == "student"
            or (isinstance(trains, tuple) and any(name == path or name.startswith(f"{path}.") for path in trains))
        )


def _make_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer; weight decay spares biases and normalisation (everything of one dimension)."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)


@contextlib.contextmanager
def _fast_kernels(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose by measuring, and use TF32, while training on a GPU; put the settings back afterwards."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = before
