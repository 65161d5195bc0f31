"""The microphone through sounddevice, as an asynchronous source of 16-bit samples."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

from asr.errors import AudioError, OptionError

_BLOCK_S = 0.02
_MAX_QUEUE_S = 60.0  # audio kept while the connection stands still, beyond what the client keeps
_RATES = (
    16_000,
    48_000,
    44_100,
    32_000,
    8_000,
)  # the first that the device can do; 16000 is the recogniser's


def load_sounddevice() -> Any:
    """Import sounddevice.

    Raises:
        OptionError: It or PortAudio is not installed.
    """
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise OptionError(
            "the microphone needs the package sounddevice; pip install 'foresound[mic]'"
        ) from error
    except OSError as error:
        raise OptionError(
            f"the microphone needs the PortAudio library ({error}); e.g. apt install libportaudio2"
        ) from error
    return sounddevice


def describe_devices(sounddevice: Any) -> list[str]:
    """Return a line for each device that can record.

    Args:
        sounddevice: The module.

    Raises:
        OptionError: There is none.
    """
    default = sounddevice.default.device[0]
    lines = [
        f"{'*' if number == default else ' '} {number:3d}  {device['name']}  "
        f"({device['max_input_channels']} channels, {device['default_samplerate']:g} Hz)"
        for number, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]
    if not lines:
        raise OptionError("no microphone was found; connect one, and check that this user may record")
    return lines


class Microphone:
    """Records mono 16-bit samples for the length of a ``with`` statement.

    Attributes:
        name: The device's name.
        sample_rate: In Hz.
        n_overruns: Blocks that were lost because nobody took them in time, or times that PortAudio lost some.
    """

    def __init__(self, sounddevice: Any, *, device: int | str | None, sample_rate: int | None) -> None:
        """Choose a device.

        Args:
            sounddevice: The module.
            device: Its number or a part of its name; the system's default where None.
            sample_rate: In Hz; a rate that the device can do where None.

        Raises:
            OptionError: No such device, or it cannot record like this.
        """
        self._sounddevice = sounddevice
        self._device = device
        try:
            self.name: str = sounddevice.query_devices(device, kind="input")["name"]
        except (ValueError, sounddevice.PortAudioError) as error:
            what = "no microphone was found" if device is None else f"device '{device}' cannot be used"
            raise OptionError(f"{what} ({_first_line(error)}); see foresound mic --list-devices") from error
        self.sample_rate = self._usable_rate(sample_rate)
        self.n_overruns = 0
        self._blocks: deque[bytes] = deque()
        self._max_blocks = round(_MAX_QUEUE_S / _BLOCK_S)
        self._arrived = asyncio.Event()
        self._is_stopped = self._has_ended = False

    def __enter__(self) -> Microphone:
        """Open the device; nothing is recorded before it is iterated.

        Raises:
            OptionError: It cannot be opened.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._stream = self._sounddevice.RawInputStream(
                samplerate=self.sample_rate,
                blocksize=round(self.sample_rate * _BLOCK_S),
                device=self._device,
                channels=1,
                dtype="int16",
                callback=self._on_audio,
                finished_callback=self._on_end,
            )
        except self._sounddevice.PortAudioError as error:
            raise OptionError(
                f"{self.name}: cannot be opened ({_first_line(error)}); another program may be using it"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the device."""
        self._stream.close()

    def stop(self) -> None:
        """Record no more; what was recorded is still yielded."""
        self._stream.stop()
        self._is_stopped = True
        self._arrived.set()

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        """Record until :meth:`stop`.

        Yields:
            Samples, s16le.

        Raises:
            AudioError: The device cannot start, or stopped by itself.
        """
        try:
            self._stream.start()
        except self._sounddevice.PortAudioError as error:
            raise AudioError(
                f"{self.name}: cannot record ({_first_line(error)}); check the device"
            ) from error
        while True:
            self._arrived.clear()
            while self._blocks:
                yield self._blocks.popleft()
            if self._is_stopped:
                return
            if self._has_ended:
                raise AudioError(f"{self.name}: stopped recording; check its cable and start again")
            await self._arrived.wait()

    def _on_audio(self, data: Any, n_frames: int, time: Any, status: Any) -> None:
        """Copy a block; PortAudio calls this in a thread that must never wait."""
        if status.input_overflow:
            self.n_overruns += 1
        if len(self._blocks) >= self._max_blocks:
            self.n_overruns += 1
            return
        self._blocks.append(bytes(data))
        self._loop.call_soon_threadsafe(self._arrived.set)

    def _on_end(self) -> None:
        self._has_ended = True
        self._loop.call_soon_threadsafe(self._arrived.set)

    def _usable_rate(self, wanted: int | None) -> int:
        reason = ""
        for rate in _RATES if wanted is None else (wanted,):
            try:
                self._sounddevice.check_input_settings(
                    device=self._device, channels=1, dtype="int16", samplerate=rate
                )
            except self._sounddevice.PortAudioError as error:
                reason = _first_line(error)
            else:
                return rate
        at = "" if wanted is None else f" at {wanted} Hz"
        raise OptionError(
            f"{self.name}: cannot record{at} ({reason}); leave --sample-rate out or try another"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]
