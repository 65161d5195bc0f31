"""``foresound serve``: starts processes of the model, serves until a signal, drains."""

from __future__ import annotations

import asyncio
import os

from service.config import ServerConfig
from service.logs import configure_logs
from service.server import Server
from service.worker_wire import Model
from service.workers import Workers


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
        threads: For the model; None is as many as there are cores. On a processor each is a process with
            weights and streams of its own; for a GPU there is one.
        log_format: One of :data:`service.logs.LOG_FORMATS`.
        weights: ``auto``, ``int8`` or ``fp32``.

    Returns:
        The exit code.

    Raises:
        ForesoundError: The server or the model cannot start.
    """
    configure_logs(log_format)
    n_threads = threads or os.cpu_count() or 1
    n_workers = n_threads if device == "cpu" else 1
    loads = Model(model, adapter, head, weights, device, config.defaults, n_threads // n_workers, log_format)
    asyncio.run(_serve(config, loads, n_workers))
    return 0


async def _serve(config: ServerConfig, model: Model, n_workers: int) -> None:
    async with Server(config) as server:
        server.handle_signals()
        n_slots, on_tick = config.limits.max_streams, server.count_tick
        async with Workers(model, n_slots=n_slots, n_workers=n_workers, on_tick=on_tick) as workers:
            loaded = workers.loaded
            server.open_for(workers, model=loaded.name, languages=loaded.languages)
            print(f"listening on {server.url}\nstreams at {server.stream_url}", flush=True)
            if server.vosk_url:
                print(f"vosk-server's protocol at {server.vosk_url}", flush=True)
            if server.rest_url:
                print(f"OpenAI's REST interface at {server.rest_url}", flush=True)
            await server.serve_forever()
            await server.close()
