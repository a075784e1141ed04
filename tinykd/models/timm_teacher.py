"""Any model of the timm library as a teacher: `timm:NAME`."""

from __future__ import annotations

from typing import Any

from torch import nn

from tinykd.errors import ConfigError, nearest


def build(name: str, num_classes: int, resolution: int, in_channels: int, **args: Any) -> nn.Module:
    """Return timm's model with `num_classes` outputs; `args` go to `timm.create_model`.

    Raises:
        ConfigError: timm is not installed, has no such model, or refuses the arguments.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"teacher '{name}' needs the library timm, which is not installed", "pip install 'tinykd[timm]'"
        ) from None
    model = name.removeprefix("timm:")
    if not timm.is_model(model):
        raise ConfigError(f"timm has no model '{model}'.{nearest(model, timm.list_models())}")
    try:
        return timm.create_model(model, num_classes=num_classes, in_chans=in_channels, **args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"timm cannot build '{model}' with {args}: {error}") from error
