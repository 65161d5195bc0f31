"""``foresound serve``: the streaming server's command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clients.common import (
    DECODERS,
    add_right_context_argument,
    add_weights_arguments,
    bounded_int,
    chunk_ms,
    latency,
    positive_int,
)


def register(subparsers: argparse._SubParsersAction[Any], *, epilog: str) -> None:
    """Add the subcommand.

    Args:
        subparsers: Of the ``foresound`` parser.
        epilog: Text under the help, with the exit codes.
    """
    parser = subparsers.add_parser(
        "serve",
        help="serve many microphones from one model over websockets",
        description="Listen for websockets on /v1/stream, OpenAI Realtime's on /v1/realtime and Deepgram's "
        "on /v1/listen, and show a page for the browser. SIGTERM and Ctrl-C let running sessions finish; a "
        "second one does not wait. SIGHUP reads the token file again.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model_arguments(parser)
    _add_access_arguments(parser)
    _add_limits(parser)
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: an object a line, with the session's id (default: text)",
    )
    parser.set_defaults(run=serve)


def serve(args: argparse.Namespace) -> int:
    """Run the subcommand.

    Args:
        args: As parsed.

    Returns:
        The exit code.
    """
    from service.config import Limits, ServerConfig
    from service.main import run
    from service.stream_settings import StreamSettings

    limits = Limits(
        max_streams=args.max_streams,
        target_latency_ms=args.target_latency_ms,
        key_streams=args.key_streams,
        key_starts=args.key_starts,
        message_bytes=args.max_message_bytes,
        queue_s=args.queue_s,
        idle_s=args.idle_s,
        session_s=args.session_s,
        resume_s=args.resume_s,
        drain_s=args.drain_s,
    )
    config = ServerConfig(
        host=args.host,
        port=args.port,
        vosk_port=args.vosk_port,
        rest_port=args.rest_port,
        upload_bytes=args.max_upload_bytes,
        limits=limits,
        defaults=StreamSettings(
            decoder=args.decoder,
            latency=args.latency,
            chunk_ms=args.chunk_ms,
            right_context_ms=args.right_context_ms,
        ),
        token_file=args.token_file,
        operator_token_file=args.operator_token_file,
        no_auth=args.no_auth,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        allow_origins=tuple(args.allow_origin),
    )
    return run(
        config,
        model=args.model,
        adapter=args.adapter,
        head=args.head,
        weights=args.weights,
        device=args.device,
        threads=args.threads,
        log_format=args.log_format,
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add_weights_arguments(parser)
    add = parser.add_argument
    add(
        "--decoder", choices=DECODERS, default="whisper", help="for clients that name none (default: whisper)"
    )
    add(
        "--latency",
        type=latency,
        metavar="NAME|MS",
        help="of --decoder transducer for clients that give none: how far ahead its frames look on average, "
        "minimal, low, medium, high, or a number of ms (default: as it was trained)",
    )
    add(
        "--chunk-ms",
        type=chunk_ms,
        default=300,
        metavar="N",
        help="chunk size for clients that give none, 40 to 1000 in steps of 20 (default: 300)",
    )
    add_right_context_argument(parser)
    add("--device", default="cpu", help="torch device (default: cpu)")
    add(
        "--threads",
        type=bounded_int(1, 1024),
        metavar="N",
        help="CPU threads of the model, each with streams of its own (default: as many as there are cores)",
    )


def _add_access_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=bounded_int(0, 65535), default=8765, help="0 is any free one (default: 8765)")
    add(
        "--vosk-port",
        type=bounded_int(0, 65535),
        metavar="N",
        help="speak vosk-server's protocol there, usually on 2700 (default: not at all)",
    )
    add(
        "--rest-port",
        type=bounded_int(0, 65535),
        metavar="N",
        help="offer OpenAI's POST /v1/audio/transcriptions there (default: not at all)",
    )
    add("--tls-cert", type=Path, metavar="PEM", help="certificate chain, for https and wss")
    add("--tls-key", type=Path, metavar="PEM", help="its private key")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="clients need one of these tokens, one a line, # comments",
    )
    add(
        "--operator-token-file",
        type=Path,
        metavar="FILE",
        help="show what runs at /debug/sessions to whoever has one of these tokens (default: to nobody)",
    )
    add("--no-auth", action="store_true", help="let everybody in, also beyond this machine")
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of https://example.com connect, * for any (default: the server's own); repeatable",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-streams", type=positive_int, default=8, metavar="N", help="sessions at a time (default: 8)")
    add(
        "--target-latency-ms",
        type=positive_int,
        metavar="N",
        help="let no more sessions in than are answered within this time, from a sample's arrival to the "
        "answer to its chunk, as the server measures it (default: --max-streams alone decides)",
    )
    add(
        "--key-streams",
        type=positive_int,
        metavar="N",
        help="sessions at a time of one token (default: any number)",
    )
    add(
        "--key-starts",
        type=positive_int,
        metavar="N",
        help="sessions that one token may begin in a minute (default: any number)",
    )
    add("--idle-s", type=_seconds, default=60, metavar="S", help="without a message (default: 60)")
    add("--session-s", type=_seconds, default=14400, metavar="S", help="length of a session (default: 14400)")
    add(
        "--resume-s",
        type=_seconds,
        default=60,
        metavar="S",
        help="for a lost client to come back (default: 60)",
    )
    add(
        "--drain-s",
        type=_seconds,
        default=30,
        metavar="S",
        help="for sessions to end at a stop (default: 30)",
    )
    add(
        "--queue-s",
        type=_seconds,
        default=10,
        metavar="S",
        help="audio that may wait, at least 5 (default: 10)",
    )
    add(
        "--max-message-bytes",
        type=positive_int,
        default=1 << 20,
        metavar="N",
        help="of one websocket message (default: 1048576)",
    )
    add(
        "--max-upload-bytes",
        type=positive_int,
        default=25 << 20,
        metavar="N",
        help="of one recording sent to --rest-port (default: 26214400)",
    )


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got '{text}'") from error
