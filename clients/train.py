"""The commands for one's own data: ``foresound data check``, ``align``, ``finetune`` and ``evaluate``.

Each imports the work, and torch with it, only when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from clients.common import (
    EXIT_USAGE,
    add_model_arguments,
    add_right_context_argument,
    bounded_int,
    chunk_ms,
    positive_int,
    report_error,
)

LAYOUTS = ("auto", "jsonl", "table", "ctm", "librispeech", "ljspeech", "audiofolder", "textgrid", "folder")


def register(subparsers: argparse._SubParsersAction[Any], *, epilog: str) -> None:
    """Add the subcommands.

    Args:
        subparsers: Of the ``foresound`` parser.
        epilog: Text under the help, with the exit codes.
    """
    look = {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}
    _register_data(subparsers, look)
    _register_align(subparsers, look)
    _register_finetune(subparsers, look)
    _register_evaluate(subparsers, look)


def _with_extra(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Turn a missing module of the extra into one line."""

    @wraps(run)
    def checked(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except ModuleNotFoundError as error:
            report_error(f"{args.command} needs the module {error.name}; install foresound[train]")
            return EXIT_USAGE

    return checked


def _register_data(subparsers: argparse._SubParsersAction[Any], look: dict[str, Any]) -> None:
    data = subparsers.add_parser("data", help="look at recordings and transcripts before training", **look)
    actions = data.add_subparsers(metavar="ACTION", required=True, dest="action")
    parser = actions.add_parser(
        "check",
        help="count, find what is broken or suspicious, write a clean manifest",
        description="Read recordings with transcripts from a JSON-lines manifest (ours or NeMo's keys), a "
        "CSV or TSV table, a folder with .txt or .lab files beside the audio, LibriSpeech, LJSpeech, a "
        "Hugging Face audiofolder, TextGrids or a CTM file; say what is in them and what is wrong, with file "
        "and line.",
        **look,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a file or folder")
    add("-o", "--output", type=Path, metavar="CLEAN.jsonl", help="write the usable recordings there")
    add("--layout", choices=LAYOUTS, default="auto", help="of the source (default: by its names)")
    for what in ("audio", "text", "speaker", "id"):
        add(f"--{what}-column", metavar="NAME", help=f"column or key with the {what} (default: usual names)")
    add(
        "--no-header", dest="has_header", action="store_false", help="columns have numbers, from 1, not names"
    )
    add("--audio-folder", type=Path, metavar="DIR", help="what audio paths are relative to")
    add("--speaker", metavar="NAME", help="of recordings whose source names none")
    add("--teacher", metavar="MODEL", help="compare the texts with what this Whisper hears")
    add("--keep-suspicious", action="store_true", help="keep recordings whose text hardly fits them")
    add("--workers", type=positive_int, default=4, metavar="N", help="files read at a time (default: 4)")
    add("--device", default="cpu", help="the teacher's torch device (default: cpu)")
    add("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run_data_check)
    split = actions.add_parser(
        "split",
        help="cut a manifest into train, dev and test",
        description="Write train.jsonl, dev.jsonl and test.jsonl: the end of the manifest is the test set, "
        "what lies before it the dev set, because neighbouring recordings are alike.",
        **look,
    )
    split.add_argument("manifest", type=Path, metavar="MANIFEST", help="a clean manifest")
    split.add_argument("-o", "--output", type=Path, default=Path("."), metavar="DIR", help="(default: .)")
    split.add_argument("--dev", type=float, default=3.0, metavar="MIN", help="minutes of dev (default: 3)")
    split.add_argument("--test", type=float, default=5.0, metavar="MIN", help="minutes of test (default: 5)")
    split.set_defaults(run=run_data_split)


@_with_extra
def run_data_check(args: argparse.Namespace) -> int:
    """Check a source of recordings."""
    from training import check
    from training.sources import SourceOptions

    options = SourceOptions(
        layout=args.layout,
        audio_column=args.audio_column,
        text_column=args.text_column,
        speaker_column=args.speaker_column,
        id_column=args.id_column,
        has_header=args.has_header,
        audio_folder=args.audio_folder,
        speaker=args.speaker,
    )
    return check.run(
        source=args.source,
        output=args.output,
        options=options,
        teacher=args.teacher,
        keep_suspicious=args.keep_suspicious,
        workers=args.workers,
        json_output=args.json,
        device=args.device,
    )


@_with_extra
def run_data_split(args: argparse.Namespace) -> int:
    """Cut a manifest into train, dev and test."""
    from training import split

    return split.run(manifest=args.manifest, output=args.output, dev_min=args.dev, test_min=args.test)


def _register_align(subparsers: argparse._SubParsersAction[Any], look: dict[str, Any]) -> None:
    parser = subparsers.add_parser(
        "align",
        help="find out when each word of a manifest was said",
        description="Give each word of a manifest's transcripts a time and a confidence, with Whisper "
        "itself; find transcripts that are wrong. The same command goes on where it was stopped.",
        **look,
    )
    add = parser.add_argument
    add("manifest", type=Path, metavar="MANIFEST", help="utterances with their texts")
    add("-o", "--output", type=Path, required=True, metavar="ALIGNED.jsonl", help="one line per utterance")
    add("--model", default="tiny.en", help="the offline Whisper that listens (default: tiny.en)")
    add("--language", default="en", metavar="L", help="language code, of multilingual models (default: en)")
    add("--times", type=Path, metavar="PATH", help="word times from a forced aligner: CTM, TextGrids, JSON")
    add("--device", default="cpu", help="torch device; cuda uses all GPUs (default: cpu)")
    add("--processes", type=positive_int, default=1, metavar="N", help="that align at a time (default: 1)")
    add("--batch-size", type=positive_int, default=8, metavar="N", help="windows of 30 s (default: 8)")
    add("--limit", type=positive_int, metavar="N", help="only the first N utterances")
    add(
        "--max-distance",
        type=float,
        default=0.7,
        metavar="X",
        help="edits per word above which a transcript is wrong if the teacher also doubts it (default: 0.7)",
    )
    add(
        "--min-confidence",
        type=float,
        default=0.5,
        metavar="X",
        help="mean probability of its words below which the teacher doubts it (default: 0.5)",
    )
    add("--trust", action="store_true", help="call no transcript wrong")
    add("--keep-spelling", action="store_true", help="give no transcript case and marks of the teacher's")
    parser.set_defaults(run=run_align)


@_with_extra
def run_align(args: argparse.Namespace) -> int:
    """Align a manifest."""
    from training import align
    from training.judge import Limits

    return align.run(
        manifest=args.manifest,
        output=args.output,
        times=args.times,
        limit=args.limit,
        options=align.AlignOptions(
            model=args.model,
            language=args.language,
            device=args.device,
            batch_size=args.batch_size,
            processes=args.processes,
            keep_spelling=args.keep_spelling,
            limits=None if args.trust else Limits(args.max_distance, args.min_confidence),
        ),
    )


def _register_finetune(subparsers: argparse._SubParsersAction[Any], look: dict[str, Any]) -> None:
    parser = subparsers.add_parser(
        "finetune",
        help="train on your recordings",
        description="Train as a YAML file says; every key can also be given as --key.path VALUE. The same "
        "command goes on where it was stopped. The result is one folder for --model.",
        **look,
    )
    add = parser.add_argument
    add("config", type=Path, nargs="?", metavar="CONFIG.yaml", help="the run; see docs/finetune.md")
    add("--smoke", action="store_true", help="run the whole chain in two steps, on CONFIG's data or on noise")
    add("--print-config", action="store_true", help="print all settings as they would be used, and stop")
    parser.set_defaults(run=run_finetune)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Put aside the arguments that set keys of a configuration.

    Args:
        arguments: Of ``foresound finetune``, the command included.

    Returns:
        The parser's own arguments; and ``--key.path VALUE`` or ``--key.path=VALUE``, in order.
    """
    own, settings = [], []
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        if not first.startswith("--") or first in ("--help", "--smoke", "--print-config"):
            own.append(first)
            continue
        settings.append(first)
        if "=" not in first and rest:
            settings.append(rest.pop(0))
    return own, settings


@_with_extra
def run_finetune(args: argparse.Namespace) -> int:
    """Train as a configuration says."""
    from training.finetune import run

    return run.main(
        config=args.config, settings=args.settings, smoke=args.smoke, print_config=args.print_config
    )


def _register_evaluate(subparsers: argparse._SubParsersAction[Any], look: dict[str, Any]) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="measure word errors and latency on a manifest",
        description="Stream every utterance of a manifest; print a table and, as the last line, "
        "one JSON object.",
        **look,
    )
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl", help="utterances with their texts")
    add_model_arguments(parser)
    add(
        "--also",
        action="append",
        default=[],
        metavar="MODEL[,ADAPTER]",
        help="compare with this model too; repeatable",
    )
    add(
        "--chunk-ms",
        type=_chunk_list,
        default=[300],
        metavar="N[,N...]",
        help="chunk sizes, 40 to 1000 (default: 300)",
    )
    add_right_context_argument(parser)
    add("--limit", type=positive_int, metavar="N", help="only the first N utterances")
    add("--alignments", type=Path, metavar="A.jsonl", help="reference word times, to measure latency against")
    add("--workers", type=bounded_int(1), default=1, metavar="N", help="processes (default: 1)")
    add("--output", type=Path, metavar="FILE.jsonl", help="also write a JSON line per utterance there")
    add("--report", type=Path, metavar="DIR", help="write report.html with clips, and plots, there")
    add("--no-offline", dest="offline", action="store_false", help="leave out offline Whisper's word errors")
    parser.set_defaults(run=run_evaluate)


def _chunk_list(text: str) -> list[int]:
    return [chunk_ms(part) for part in text.split(",")]


@_with_extra
def run_evaluate(args: argparse.Namespace) -> int:
    """Measure models on a manifest."""
    from training import evaluate

    code: int = evaluate.run(
        manifest=args.manifest,
        model=args.model,
        adapter=args.adapter,
        head=args.head,
        weights=args.weights,
        also=args.also,
        decoder=args.decoder,
        latency=args.latency,
        chunk_ms=args.chunk_ms,
        right_context_ms=args.right_context_ms,
        beam_size=args.beam,
        second_pass=args.second_pass,
        limit=args.limit,
        alignments=args.alignments,
        workers=args.workers,
        output=args.output,
        report=args.report,
        offline=args.offline,
    )
    return code
