"""Steps per second of distillation, beside a plain DataLoader loop, in one run: ResNet-20 taught by ResNet-56.

    python benchmarks/training_speed.py                 the machine's device, 4 rounds, JSON into benchmarks/results/
    python benchmarks/training_speed.py --no-save --steps 5 --rounds 2

The baseline is written as public distillation repositories write it: a data set of PIL images, transforms per image, a
DataLoader with workers, both networks in eager mode, meters read at every step. Both loops train the same student with
the same teacher, batch 64, SGD and KD at temperature 4; they take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinykd.train import limit_spinning

limit_spinning()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image, ImageOps  # noqa: E402

from tinykd.config import AugmentConfig, DistillConfig, TrainConfig  # noqa: E402
from tinykd.data.augment import Augment  # noqa: E402
from tinykd.data.base import Dataset, Split  # noqa: E402
from tinykd.distill import build_method  # noqa: E402
from tinykd.models import build_model  # noqa: E402
from tinykd.models.teacher import Teacher  # noqa: E402
from tinykd.train.loop import fit  # noqa: E402
from tinykd.train.objective import Objective  # noqa: E402
from tinykd.train.progress import Progress  # noqa: E402

RESULTS = Path(__file__).parent / "results"
BATCH = 64
CLASSES = 100
WARM_UP = 4
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class PilImages(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Images as PIL, transformed one by one: random crop with padding 4, mirror, to tensor, normalise."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Keep uint8 (N, 32, 32, 3) images and their labels."""
        self.images, self.labels = images, labels
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        """Return a transformed image, its label and its index."""
        image = ImageOps.expand(Image.fromarray(self.images[index]), 4)
        left, top = random.randint(0, 8), random.randint(0, 8)
        image = image.crop((left, top, left + 32, top + 32))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (x - self.mean) / self.std, int(self.labels[index]), index


class Meter:
    """A running average, read at every step."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.sum, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        """Take in a batch's mean."""
        self.sum, self.count = self.sum + value * count, self.count + count


class Baseline:
    """The plain loop: one endless epoch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, device: torch.device, workers: int) -> None:
        """Build models, optimizer and loader."""
        self.device = device
        torch.manual_seed(0)
        self.student, self.teacher = (build_model(name, CLASSES, 32, 3).to(device) for name in ("resnet20", "resnet56"))
        self.teacher.eval()
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.loader = torch.utils.data.DataLoader(
            PilImages(images, labels), batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True
        )
        self.batches = self._endless()
        self.losses, self.top1, self.top5 = Meter(), Meter(), Meter()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def step(self) -> None:
        """Train on one batch."""
        self.student.train()
        images, labels, _ = next(self.batches)
        images, labels = images.to(self.device), labels.to(self.device)
        logits = self.student(images)
        with torch.no_grad():
            taught = self.teacher(images)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(taught / 4, 1), reduction="batchmean") * 16
        loss = 0.1 * F.cross_entropy(logits, labels) + 0.9 * soft
        best = logits.topk(5, 1).indices.eq(labels[:, None])
        self.top1.update(best[:, :1].float().sum().item() / len(labels), len(labels))
        self.top5.update(best.float().sum().item() / len(labels), len(labels))
        self.losses.update(loss.item(), len(labels))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Clock(Progress):
    """Notes when each step ended."""

    def __init__(self) -> None:
        """Start without times."""
        self.times: list[float] = []

    def step(self, step: int, loss: float | None) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def ours(images: np.ndarray, labels: np.ndarray, device: torch.device, steps: int, amp: bool) -> float:
    """Return steps per second of tinykd's loop, without its first steps."""
    count = (steps + WARM_UP) * BATCH
    chosen = np.arange(count) % len(images)
    split, nothing = Split(images[chosen], labels[chosen]), Split(images[:0], labels[:0])
    dataset = Dataset(
        name="speed", train=split, val=nothing, test=nothing, classes=tuple(map(str, range(CLASSES))),
        mean_level=128, std_level=64.0, provenance={}, notes=(),
    )  # fmt: skip
    torch.manual_seed(0)
    student, teacher = (build_model(name, CLASSES, 32, 3) for name in ("resnet20", "resnet56"))
    config = TrainConfig(epochs=1, batch_size=BATCH, lr=0.05, label_weight=0.1, amp=amp)
    losses = [DistillConfig(method="kd", weight=0.9, args={"temperature": 4.0})]
    objective = Objective(config, losses, {"kd": build_method("kd", {"temperature": 4.0})}, Teacher(teacher))
    augment = Augment(AugmentConfig(crop_padding=4, flip=True), 128, 64.0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fit(
            student, objective, dataset, augment, config,
            folder=Path(folder), title="", progress=clock, device=device,
        )  # fmt: skip
    return steps / (clock.times[-1] - clock.times[WARM_UP - 1])


def baseline_speed(loop: Baseline, steps: int) -> float:
    """Return steps per second of the baseline, without its first steps."""
    for _ in range(WARM_UP):
        loop.step()
    started = time.perf_counter()
    for _ in range(steps):
        loop.step()
    return steps / (time.perf_counter() - started)


def load_images() -> tuple[np.ndarray, np.ndarray, str]:
    """Return CIFAR-100's training images where they are at hand, else random ones: the time is the same."""
    if os.environ.get("TINYKD_DATA"):
        from tinykd.config import DataConfig
        from tinykd.data import load_dataset

        split = load_dataset(DataConfig(name="cifar100")).train
        return split.images, split.labels, "cifar100"
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (10000, 32, 32, 3), np.uint8), rng.integers(0, CLASSES, 10000), "random pixels"


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of each loop in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of the baseline's DataLoader")
    parser.add_argument("--no-amp", action="store_true", help="float32 in tinykd's loop, as in the baseline")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    images, labels, data = load_images()
    plain = Baseline(images, labels, device, arguments.workers)
    rounds = []
    for number in range(arguments.rounds):
        left = baseline_speed(plain, arguments.steps)
        right = ours(images, labels, device, arguments.steps, not arguments.no_amp)
        rounds.append({"baseline_steps_per_s": left, "tinykd_steps_per_s": right, "ratio": right / left})
        print(f"round {number + 1}: baseline {left:.2f}, tinykd {right:.2f} steps/s, ratio {right / left:.2f}")
    ratios = [row["ratio"] for row in rounds]
    print(f"ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    if arguments.no_save:
        return
    record = {
        "what": __doc__.splitlines()[0],
        "command": " ".join(["python", "benchmarks/training_speed.py", *sys.argv[1:]]),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "device": device.type},
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "versions": {name: version(name) for name in ("torch", "numpy", "tinykd")},
        "data": data,
        "batch": BATCH,
        "workers": arguments.workers,
        "mixed_precision": not arguments.no_amp,
        "rounds": rounds,
        "median_ratio": statistics.median(ratios),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training-speed-{device.type}{'-float32' if arguments.no_amp else ''}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
