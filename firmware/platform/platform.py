"""PlatformIO platform of the tinykd firmware: no packages, the compiler is the arm-none-eabi-gcc on PATH."""

from platformio.platform.base import PlatformBase


class TinykdPlatform(PlatformBase):
    """Nothing beyond PlatformIO's own behaviour; boards come from the project's generated/ folder."""
