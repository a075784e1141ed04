"""What surrounds an emulated core: registers that remember, ready bits that follow, a UART, the cycle counter, reset.

Plain Python, independent of the emulator. Addresses inside the core: ARM DDI 0403E, sections B3.2 and C1.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tinykd.board import MirrorBit

DWT_CYCCNT = 0xE000_1004
CPUID = 0xE000_ED00
AIRCR = 0xE000_ED0C
_AIRCR_KEY_MASK = 0xFFFF_0004
_AIRCR_RESET = 0x05FA_0004
_CPUID_VALUES = {
    "cortex-m0": 0x410C_C200,
    "cortex-m3": 0x412F_C231,
    "cortex-m4": 0x410F_C241,
    "cortex-m7": 0x411F_C272,
    "cortex-m33": 0x410F_D213,
}
# Firmware that finds the UART empty so many times running, with nothing sent between, waits for the host. More than
# one, because the same status register is read before each byte that is sent.
POLLS_UNTIL_IDLE = 3

_RXNE, _TC, _TXE = 1 << 5, 1 << 6, 1 << 7
_NOTHING, _SOMETHING = _TC | _TXE, _RXNE | _TC | _TXE


@dataclass(frozen=True)
class UartModel:
    """Offsets in bytes of a UART's registers, and the bits of its control register that switch it on."""

    status: int
    receive: int
    transmit: int
    control: int
    enable_mask: int


# The USART register maps of RM0402 (SR, DR, CR1 with UE in bit 13) and RM0385 (ISR, RDR, TDR, CR1 with UE in bit 0);
# TE is bit 3 and RE bit 2 of CR1 in both.
UART_MODELS: Mapping[str, UartModel] = {
    "stm32-usart-v1": UartModel(0x00, 0x04, 0x04, 0x0C, 1 << 13 | 3 << 2),
    "stm32-usart-v2": UartModel(0x1C, 0x24, 0x28, 0x00, 1 << 0 | 3 << 2),
}


class Registers:
    """Memory-mapped registers: each reads as last written (0 at first), except for ready bits and the core's own.

    Args:
        mirrors: ready bits that follow other bits.
        cpu: the core, for CPUID.
        cycles: gives the value of the cycle counter.
        on_reset: called when the firmware asks for a restart.
    """

    def __init__(
        self, mirrors: list[MirrorBit], cpu: str, cycles: Callable[[], int], on_reset: Callable[[], None]
    ) -> None:
        self._mirrors: dict[int, list[MirrorBit]] = {}
        for mirror in mirrors:
            self._mirrors.setdefault(mirror.address, []).append(mirror)
        self._cpuid = _CPUID_VALUES[cpu]
        self._cycles = cycles
        self._on_reset = on_reset
        self.reset()

    def reset(self) -> None:
        """Forget everything that was written."""
        self._values: dict[int, int] = {}
        self._cycles_zero = self._cycles()

    def read(self, address: int, size: int) -> int:
        """Return `size` bytes at `address`."""
        word = address & ~3
        if word == DWT_CYCCNT:
            value = (self._cycles() - self._cycles_zero) & 0xFFFF_FFFF
        elif word == CPUID:
            value = self._cpuid
        else:
            value = self._values.get(word, 0)
        for mirror in self._mirrors.get(word, ()):
            source = word if mirror.write_address is None else mirror.write_address
            bit = self._values.get(source, 0) >> mirror.write_bit & 1
            value = value & ~(1 << mirror.read_bit) | bit << mirror.read_bit
        return value >> 8 * (address & 3) & ((1 << 8 * size) - 1)

    def write(self, address: int, size: int, value: int) -> None:
        """Store `size` bytes at `address`."""
        word, shift = address & ~3, 8 * (address & 3)
        mask = ((1 << 8 * size) - 1) << shift
        value = self._values.get(word, 0) & ~mask | value << shift & mask
        self._values[word] = value
        if word == DWT_CYCCNT:
            self._cycles_zero = self._cycles() - value
        elif word == AIRCR and value & _AIRCR_KEY_MASK == _AIRCR_RESET:
            self._on_reset()


class Uart:
    """The UART that the host talks through. Never loses a byte: it stands for a line without noise.

    Args:
        model: its register layout.
        base: its address.
        registers: where its other registers live.
        on_idle: called when the firmware waits for a byte and there is none.
    """

    def __init__(self, model: UartModel, base: int, registers: Registers, on_idle: Callable[[], None]) -> None:
        self._registers = registers
        self._on_idle = on_idle
        self._status = base + model.status
        self._receive = base + model.receive
        self._transmit = base + model.transmit
        self._control = base + model.control
        self._enable_mask = model.enable_mask
        self._sent = bytearray()
        self.reset()

    def reset(self) -> None:
        """Be switched off, and lose what the firmware has not read yet."""
        self._enabled = False
        self._waiting = bytearray()
        self._next = 0
        self._idle_polls = 0

    @property
    def has_input(self) -> bool:
        """Whether the firmware has not yet read everything."""
        return self._next < len(self._waiting)

    def put(self, data: bytes) -> None:
        """Let bytes arrive at the device."""
        del self._waiting[: self._next]
        self._next = 0
        self._waiting += data
        self.wake()

    def take(self) -> bytes:
        """Return what the device has sent since the last call."""
        data = bytes(self._sent)
        self._sent.clear()
        return data

    def wake(self) -> None:
        """Count empty polls from zero."""
        self._idle_polls = 0

    def read(self, address: int, size: int) -> int:
        """Return a register's value."""
        if address == self._status:
            if self._next < len(self._waiting) and self._enabled:
                return _SOMETHING
            self._idle_polls += 1
            if self._idle_polls >= POLLS_UNTIL_IDLE:
                self._on_idle()
            return _NOTHING
        if address == self._receive:
            self._idle_polls = 0
            if self._next == len(self._waiting):
                return 0
            self._next += 1
            return self._waiting[self._next - 1]
        return self._registers.read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Store to a register; bytes to a switched-off transmitter are lost, as on the chip."""
        if address == self._transmit:
            self._idle_polls = 0
            if self._enabled:
                self._sent.append(value & 0xFF)
            return
        self._registers.write(address, size, value)
        if address == self._control:
            self._enabled = self._registers.read(address, 4) & self._enable_mask == self._enable_mask
