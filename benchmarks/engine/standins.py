"""MCUNet models with random weights, through tinykd's own road: for networks whose files nobody may pass on.

What an inference costs hangs on shapes, not on weights. They are seeded, batch norm takes its statistics from seeded
images so that no activation dies or saturates, and the int8 conversion is calibrated with the same images.
"""

from __future__ import annotations

from pathlib import Path

SEED = 5
IMAGES = 16
BATCHES = 40  # of momentum 0.1: the statistics are those of the images to 1.5 %


def make_standin(architecture: str, resolution: int, classes: int) -> bytes:
    """Return the `.tflite` of a network of the zoo with random weights; the same bytes on the same versions of torch.

    Raises:
        ModuleNotFoundError: torch is not installed.
    """
    import numpy as np
    import torch

    from tinykd.export.convert import Normalization, convert
    from tinykd.formats.onnx import torch as onnx_torch
    from tinykd.formats.tflite import writer
    from tinykd.models import build_model

    rng = np.random.default_rng(SEED)
    # Smooth images, as photographs are: noise at one eighth of the side, enlarged.
    coarse = rng.integers(0, 256, (IMAGES, -(-resolution // 8), -(-resolution // 8), 3), dtype=np.uint8)
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :resolution, :resolution]
    normalization = Normalization(128, 64.0)
    threads = torch.get_num_threads()
    # Sums of floats depend on how many threads take part.
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(SEED)
            model = build_model(architecture, classes, resolution, 3)
            batch = torch.from_numpy(normalization.to_float(images).transpose(0, 3, 1, 2).copy())
            model.train()
            for _ in range(BATCHES):
                model(batch)
        float_onnx = onnx_torch.export_torch(model, (3, resolution, resolution))
    finally:
        torch.set_num_threads(threads)
    _, graph = convert(float_onnx, images, normalization, name=architecture)
    return writer.write(graph)


def cached_standin(architecture: str, resolution: int, classes: int, folder: Path) -> Path:
    """Return the file of a stand-in below `folder`, made when it is not there.

    Raises:
        ModuleNotFoundError: it must be made, and torch is not installed.
    """
    path = folder / f"{architecture}-{resolution}px-{classes}-seed{SEED}.tflite"
    if not path.is_file():
        data = make_standin(architecture, resolution, classes)
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_bytes(data)
        draft.replace(path)
    return path
