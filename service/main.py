"""``foresound serve``: loads the model, serves until a signal, drains."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from asr.errors import OptionError
from service.config import ServerConfig
from service.logs import configure_logs
from service.server import Server
from service.stream_settings import StreamSettings

if TYPE_CHECKING:
    from asr import Recognizer


def run(
    config: ServerConfig,
    *,
    model: str,
    adapter: str,
    head: str,
    device: str,
    threads: int | None,
    log_format: str = "text",
    weights: str = "auto",
) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        config: How to listen and whom to let in.
        model: As in :meth:`asr.Recognizer.load`, like ``adapter``, ``head`` and ``device``.
        adapter: The causal adapter.
        head: The transducer head.
        device: A torch device.
        threads: For the model; None is as many as there are cores. On a processor each is a lane of the
            batcher, which computes ticks of its own; on a GPU there is one lane.
        log_format: One of :data:`service.logs.LOG_FORMATS`.
        weights: ``auto``, ``int8`` or ``fp32``.

    Returns:
        The exit code.

    Raises:
        ForesoundError: The server or the model cannot start.
    """
    configure_logs(log_format)
    n_threads = threads or os.cpu_count() or 1
    n_lanes = n_threads if device == "cpu" else 1
    os.environ["OMP_NUM_THREADS"] = str(n_threads // n_lanes)  # torch reads it when it is first imported
    load = partial(
        _load, config.defaults, model=model, adapter=adapter, head=head, weights=weights, device=device
    )
    asyncio.run(_serve(config, load, n_lanes))
    return 0


async def _serve(config: ServerConfig, load: Callable[[], Recognizer], n_lanes: int) -> None:
    async with Server(config) as server:
        server.handle_signals()
        recognizer = await asyncio.to_thread(load)
        from service.batcher import Batcher

        n_slots, on_tick = config.limits.max_streams, server.count_tick
        n_lanes = min(n_lanes, n_slots)
        async with Batcher(recognizer, n_slots=n_slots, n_lanes=n_lanes, on_tick=on_tick) as batcher:
            server.open_for(batcher, model=recognizer.name, languages=recognizer.languages)
            print(f"listening on {server.url}\nstreams at {server.stream_url}", flush=True)
            if server.vosk_url:
                print(f"vosk-server's protocol at {server.vosk_url}", flush=True)
            if server.rest_url:
                print(f"OpenAI's REST interface at {server.rest_url}", flush=True)
            await server.serve_forever()
            await server.close()


def _load(
    defaults: StreamSettings, *, model: str, adapter: str, head: str, weights: str, device: str
) -> Recognizer:
    from asr import Recognizer

    try:
        recognizer = Recognizer.load(model, adapter=adapter, head=head, weights=weights, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's, for a device it does not have
        if device == "cpu":
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise OptionError(f"device '{device}' cannot be used ({reason}); try --device cpu") from error
    # A default that the model refuses is better found now than by every client.
    recognizer.stream(
        decoder=defaults.decoder,
        latency=defaults.latency,
        chunk_ms=defaults.chunk_ms,
        right_context_ms=defaults.right_context_ms,
    )
    return recognizer
