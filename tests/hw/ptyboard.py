"""A pseudo-terminal that plays a board."""

from __future__ import annotations

import errno
import os
import threading

from tinykd.run.transport.fake import FakeDevice


class PtyBoard:
    """A fake device at the other end of a pseudo-terminal."""

    def __init__(self, device: FakeDevice | None) -> None:
        import pty
        import tty

        self.device = device
        self.master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                data = os.read(self.master, 4096)
                if self.device is not None:
                    self.device.receive(data)
                    os.write(self.master, self.device.take())
        except OSError as error:
            assert error.errno in (errno.EIO, errno.EBADF)

    def unplug(self) -> None:
        """Make the port vanish."""
        os.close(self.slave)
        os.close(self.master)
