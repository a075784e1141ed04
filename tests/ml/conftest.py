"""One thread for all of these tests: their networks are small, and spinning threads would slow a busy machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
