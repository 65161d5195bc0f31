"""``foresound serve``: its options, their defaults, and errors in one line with exit code 2."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import service.main
from clients.cli import main
from service.config import Limits, ServerConfig
from service.stream_settings import StreamSettings


def parsed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[ServerConfig, dict[str, Any]]:
    """What the command hands to the service."""
    calls: list[Any] = []
    monkeypatch.setattr(service.main, "run", lambda config, **rest: calls.append((config, rest)) or 0)
    assert main(["serve", *arguments]) == 0
    config, rest = calls[0]
    return config, rest


def test_the_command_s_defaults_are_the_service_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written down twice, for the help, and are the same."""
    config, rest = parsed(monkeypatch)
    assert config == ServerConfig()
    assert rest == {
        "model": "tiny.en",
        "adapter": "auto",
        "head": "auto",
        "weights": "auto",
        "device": "cpu",
        "threads": None,
    }


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends up where it belongs."""
    text = (
        "--host 0.0.0.0 --port 1 --model base --adapter none --head h --weights fp32 "
        "--decoder transducer --latency 90 --chunk-ms 80 --max-streams 2 "
        "--tls-cert c --tls-key k --token-file t --threads 3 --device cuda --idle-s 1 --session-s 2 "
        "--resume-s 3 --drain-s 4 --queue-s 5 --max-message-bytes 6000 "
        "--allow-origin https://a.b --allow-origin * --vosk-port 2700 --rest-port 0 --max-upload-bytes 7"
    )
    config, rest = parsed(monkeypatch, *text.split())
    assert config == ServerConfig(
        host="0.0.0.0",
        port=1,
        limits=Limits(
            max_streams=2, message_bytes=6000, queue_s=5, idle_s=1, session_s=2, resume_s=3, drain_s=4
        ),
        defaults=StreamSettings(decoder="transducer", latency=90.0, chunk_ms=80),
        token_file=Path("t"),
        tls_cert=Path("c"),
        tls_key=Path("k"),
        allow_origins=("https://a.b", "*"),
        vosk_port=2700,
        rest_port=0,
        upload_bytes=7,
    )
    assert rest == {
        "model": "base",
        "adapter": "none",
        "head": "h",
        "weights": "fp32",
        "device": "cuda",
        "threads": 3,
    }
    assert parsed(monkeypatch, "--host", "::", "--no-auth")[0].no_auth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--host 0.0.0.0",
            "'0.0.0.0' can be reached from other machines; add --token-file FILE, or --no-auth",
        ),
        (
            "--token-file /nowhere/tokens",
            "token file /nowhere/tokens cannot be read: No such file or directory",
        ),
        ("--tls-cert {file} --tls-key {file}", "TLS cannot use {file} with {file}"),
        ("--tls-cert {file}", "TLS needs both a certificate and its key"),
        ("--queue-s 1", "queue_s is 1; expected at least 5"),
        ("--idle-s soon", "argument --idle-s: expected a number of seconds, got 'soon'"),
        ("--port 70000", "argument --port: expected an integer from 0 to 65535, got '70000'"),
        ("--chunk-ms 20", "argument --chunk-ms: expected an integer from 40 to 1000, got '20'"),
        ("--decoder ctc", "argument --decoder: invalid choice: 'ctc'"),
        ("--latency soon", "argument --latency: expected minimal, low, medium, high or a number of ms"),
        ("--head none --decoder transducer", "decoder 'transducer' needs a head and none is loaded"),
        ("--latency low", "latency 'low' is for the transducer"),
        ("--allow-origin example.com", "origin 'example.com' is none"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str, tmp_path: Path, capsys: Any) -> None:
    """Exit code 2 and one line that says what to do, before any model is loaded."""
    file = tmp_path / "file.pem"
    file.write_text("nothing\n")
    assert main(["serve", "--port", "0", *arguments.format(file=file).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"foresound: error: {message.format(file=file)}") and error.count("\n") == 1


@pytest.mark.parametrize("option", ["--port", "--vosk-port", "--rest-port"])
def test_a_port_in_use_is_one_line(option: str, capsys: Any) -> None:
    """Also that is found out before the model is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", "0", option, str(port)]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"foresound: error: port {port} on 127.0.0.1 is in use") and error.count("\n") == 1
    )
