"""A network whose every packet passes through the test: lost, late, doubled, out of order, or none at all.

For a network namespace on Linux, whose TUN device is a file of IP packets here. What is sent to ``THERE`` is
handed back as if it came from there, with source and destination exchanged (which leaves checksums right), so
that both ends of a connection to ``THERE`` are in this process.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import struct
import subprocess
from dataclasses import dataclass
from types import TracebackType

HERE, THERE = "10.9.0.1", "10.9.0.2"
_DEVICE = "tun0"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MAX_PACKET = 1 << 16


@dataclass
class Fate:
    """What becomes of packets.

    Attributes:
        loss: Part that is lost.
        delay_s: At least, for the others.
        jitter_s: More of it, at random: packets overtake one another.
        doubled: Part that comes twice.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    doubled: float = 0.0


class Network:
    """The device, as an asynchronous context manager.

    Attributes:
        fate: May change at any time.
        n_lost: Packets so far.
        n_overtaken: Packets that came after one sent later.
    """

    def __init__(self, fate: Fate) -> None:
        self.fate = fate
        self.n_lost = self.n_overtaken = 0
        self._chance = random.Random(9)
        self._n_read = self._newest = 0

    async def __aenter__(self) -> Network:
        self._file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self._file, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        subprocess.run(["ip", "address", "add", f"{HERE}/24", "dev", _DEVICE], check=True)
        subprocess.run(["ip", "link", "set", _DEVICE, "up"], check=True)
        asyncio.get_running_loop().add_reader(self._file, self._take)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._file)
        file, self._file = self._file, -1
        os.close(file)

    def _take(self) -> None:
        packet = os.read(self._file, _MAX_PACKET)
        if packet[0] >> 4 != 4:  # the kernel also looks for IPv6 routers
            return
        back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
        self._n_read += 1
        if self._chance.random() < self.fate.loss:
            self.n_lost += 1
            return
        for _ in range(1 + (self._chance.random() < self.fate.doubled)):
            wait_s = self.fate.delay_s + self._chance.random() * self.fate.jitter_s
            asyncio.get_running_loop().call_later(wait_s, self._give, self._n_read, back)

    def _give(self, number: int, packet: bytes) -> None:
        self.n_overtaken += number < self._newest
        self._newest = max(self._newest, number)
        if self._file >= 0:
            os.write(self._file, packet)
