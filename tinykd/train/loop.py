"""The one training loop, for teachers and students alike.

On the CPU a training that was stopped anywhere and resumed ends with the same bits as one that ran through: the order
of an epoch's images follows from the seed and the epoch, and everything else that changes is in the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from tinykd.artifact import write_bytes
from tinykd.config import TrainConfig
from tinykd.data.augment import Augment
from tinykd.data.base import Dataset, Split
from tinykd.errors import ConfigError
from tinykd.train.checkpoint import Checkpoint, load_checkpoint, optimizer_state, restore_optimizer, save_checkpoint
from tinykd.train.ema import Ema
from tinykd.train.objective import Objective
from tinykd.train.progress import Progress
from tinykd.train.schedule import learning_rate
from tinykd.train.stop import StopRequested

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class FitResult:
    """The trained module in eval mode (its averaged weights where the recipe asks for them) and how it went.

    `seconds` is training time over all sittings; `top1_val` is None without validation images.
    """

    model: nn.Module
    seconds: float
    steps_per_s: float
    top1_val: float | None


class DeviceSplit:
    """A split as tensors on the device: images uint8 (N, H, W, C), labels int64 (N,)."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)
        self.labels = torch.from_numpy(np.ascontiguousarray(split.labels)).to(device)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


@torch.no_grad()
def evaluate(model: nn.Module, split: DeviceSplit, augment: Augment, batch_size: int = 500) -> float | None:
    """Return the top-1 accuracy 0..1 in eval mode and float32; None for an empty split. The mode is put back."""
    if not len(split):
        return None
    training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    for start in range(0, len(split), batch_size):
        logits = model(augment.normalise(split.images[start : start + batch_size]))
        correct += (logits.argmax(1) == split.labels[start : start + batch_size]).sum()
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

    Raises:
        ConfigError: the loss became infinite or NaN.
        StopRequested: SIGINT or SIGTERM; the checkpoint is written.
        ArtifactError: the folder cannot be written, or the checkpoint is broken.
    """
    run = _Run(model, objective, dataset, augment, config, folder, device)
    run.restore()
    progress.start(title, config.epochs, run.steps_per_epoch, run.step)
    with _Journal(folder, run.step // run.steps_per_epoch) as journal, _stop_signals() as stop, _fast_kernels(device):
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
            if stop and run.step < run.total_steps:
                run.seconds += time.perf_counter() - clock
                run.save()
                raise StopRequested(stop[0], run.checkpoint)
    trained = run.averaged_model().eval()
    val = evaluate(trained, run.val, augment)
    return FitResult(trained, run.seconds, run.total_steps / max(run.seconds, 1e-9), val)


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
    ) -> None:
        self.config, self.device, self.augment = config, device, augment
        self.checkpoint = folder / CHECKPOINT
        # channels_last is for the GPU alone: with it, the backward pass of strided 1x1 convolutions on the CPU (torch
        # 2.13) has written outside of its buffers, which shows as different bits from run to run and as crashes.
        self.memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model = model.to(device, memory_format=self.memory_format).train()  # type: ignore[call-overload]
        self.objective = objective.to(device).train()
        self.train, self.val = DeviceSplit(dataset.train, device), DeviceSplit(dataset.val, device)
        self.batch_size = min(config.batch_size, len(self.train))
        self.steps_per_epoch = len(self.train) // self.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.order = torch.empty(0, dtype=torch.int64, device=device)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(config.seed)
        self.parameters = [p for m in (self.model, self.objective) for p in m.parameters() if p.requires_grad]
        self.optimizer = _make_optimizer(self.parameters, config)
        # Sums over the epoch so far: loss, correct, then the parts of the loss.
        self.sums = torch.zeros(2 + len(objective.part_names), dtype=torch.float64, device=device)
        self.amp = config.amp and device.type == "cuda"
        self.amp_dtype = torch.bfloat16 if self.amp and torch.cuda.is_bf16_supported(False) else torch.float16
        self.scaler = torch.amp.GradScaler(enabled=self.amp and self.amp_dtype is torch.float16)

    def averaged_model(self) -> nn.Module:
        return self.model if self.ema is None else self.ema.model

    def train_step(self) -> None:
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0 or not len(self.order):
            self.order = self._epoch_order(epoch)
        chosen = self.order[position * self.batch_size : (position + 1) * self.batch_size]
        labels = self.train.labels[chosen]
        images = self.augment(self.train.images[chosen], self.generator)
        images = images.contiguous(memory_format=self.memory_format)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, self.steps_per_epoch)
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp):
            logits = self.model(images)
            loss, parts = self.objective(images, labels, logits)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, self.step)
        correct = (logits.detach().argmax(1) == labels).sum()
        self.sums += torch.stack([loss.detach(), correct, *parts]).double()
        self.step += 1

    def _epoch_order(self, epoch: int) -> torch.Tensor:
        # On the CPU whatever the device, so that a GPU sees the images in the same order.
        generator = torch.Generator().manual_seed((self.config.seed << 20) + epoch)
        return torch.randperm(len(self.train), generator=generator).to(self.device)

    def finish_epoch(self) -> dict[str, Any]:
        epoch = self.step // self.steps_per_epoch
        sums = self.sums.tolist()
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
            "top1_train": sums[1] / (self.steps_per_epoch * self.batch_size),
        }
        for name, total in zip(self.objective.part_names, sums[2:], strict=True):
            record[f"loss_{name}"] = total / self.steps_per_epoch
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            record["top1_val"] = evaluate(self.averaged_model(), self.val, self.augment)
        self.sums.zero_()
        return record

    def save(self) -> None:
        optimizer_tensors, optimizer_facts = optimizer_state(self.optimizer)
        groups = {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "ema": {} if self.ema is None else self.ema.model.state_dict(),
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
        }
        save_checkpoint(self.checkpoint, groups, facts)

    def restore(self) -> None:
        saved = load_checkpoint(self.checkpoint)
        if saved is None:
            return
        self._restore_tensors(saved)
        self.step, self.seconds = saved.facts["step"], saved.facts["seconds"]
        restore_optimizer(self.optimizer, saved.group("optimizer"), saved.facts["optimizer"])
        if saved.facts["scaler"]:
            self.scaler.load_state_dict(saved.facts["scaler"])

    def _restore_tensors(self, saved: Checkpoint) -> None:
        self.model.load_state_dict(saved.group("model"))
        self.objective.load_state_dict(saved.group("objective"))
        if self.ema is not None:
            self.ema.model.load_state_dict(saved.group("ema"))
        loop = saved.group("loop")
        self.sums.copy_(loop["sums"])
        torch.set_rng_state(loop["cpu_rng"])
        if saved.facts["device"] == self.device.type:
            self.generator.set_state(loop["augment_rng"])
            if "cuda_rng" in loop:
                torch.cuda.set_rng_state(loop["cuda_rng"], self.device)


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


class _Journal:
    """`metrics.jsonl` and, when tensorboard is installed, `tensorboard/`: one record for each epoch."""

    def __init__(self, folder: Path, epochs_done: int) -> None:
        self.path = folder / METRICS
        self.folder = folder
        self.epochs_done = epochs_done
        self.board: Any = None

    def __enter__(self) -> _Journal:
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        # What was written after the checkpoint will be written again.
        write_bytes(self.path, b"".join(lines[: self.epochs_done]))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return self
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.epochs_done + 1)
        return self

    def write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for name, value in record.items():
                if name not in ("epoch", "step") and value is not None:
                    self.board.add_scalar(name, value, record["epoch"])

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            self.board.close()


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Turn SIGINT and SIGTERM into an entry of the list, so that the step under way is finished and saved.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous: dict[int, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:
        pass
    try:
        yield received
    finally:
        for restored, handler in previous.items():
            signal.signal(restored, handler)


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
