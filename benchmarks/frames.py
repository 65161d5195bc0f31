"""How good encoder frames are, by chunk and right context: the decoder reads all of an utterance's at once.

``python -m benchmarks.frames --manifest dev.jsonl --limit 40 --modes 300,600,300+300`` separates what
streaming loses in the frames, by what they could not see, from what it loses by committing early: nothing is
committed before the end. A mode is a chunk and a right context in ms. One line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from whisper.tokenizer import get_tokenizer

from asr import ForesoundError, Recognizer
from asr.chunking import FRAME_MS, MAX_CHUNK_MS, Chunking
from asr.decoder import Decoder, FrameCache
from asr.encoder import FRAME_SAMPLES, MEL_PER_FRAME, CausalEncoder
from asr.features import LogMel, RunningNorm
from asr.rules import default_rules
from asr.search import Search
from asr.words import Vocabulary
from benchmarks.machine import machine
from training.manifest import load_audio, read_manifest
from training.metrics import WerResult, count_edits

LAST_SILENCE = MAX_CHUNK_MS // FRAME_MS  # frames after the speech, so that the last chunk is whole
MAX_S = 26.0  # longer utterances do not fit into a window with that silence


class WholeReader:
    """Encodes an utterance under a mask and reads it with every frame there."""

    def __init__(self, recognizer: Recognizer) -> None:
        """Read with the adapted model of ``recognizer``."""
        model = recognizer.streaming_model
        self._encoder = CausalEncoder(model.encoder)
        self._decoder = Decoder(model.decoder, model.alignment_heads)
        self._mel = LogMel(model.dims.n_mels)
        self._tokenizer = get_tokenizer(model.is_multilingual, language="en", task="transcribe")
        self._rules = default_rules(self._tokenizer, n_vocab=model.dims.n_vocab, device=model.device)
        self._vocabulary = Vocabulary(self._tokenizer)

    @torch.inference_mode()
    def read(self, samples: np.ndarray, chunking: Chunking) -> str:
        """The text of float32 samples ``[S]``."""
        return self._decode(self._encode(samples, chunking))

    def _encode(self, samples: np.ndarray, chunking: Chunking) -> Tensor:
        n_frames = len(samples) // FRAME_SAMPLES + LAST_SILENCE
        n_samples = (n_frames * MEL_PER_FRAME + 1) * self._mel.block_size
        signal = F.pad(torch.from_numpy(samples)[None], (0, n_samples - len(samples)))
        mel, _ = RunningNorm().forward(self._mel.forward(signal))
        return self._encoder.forward(mel, chunking)

    def _decode(self, frames: Tensor) -> str:
        cross = self._decoder.new_frame_cache(max_frames=frames.shape[1])
        self._decoder.append_frames([(frames, cross)])
        search = Search(
            self._decoder,
            self._rules,
            self._vocabulary,
            cache=self._decoder.new_self_cache(),
            eot=self._tokenizer.eot,
            open_tokens=0,
        )
        search.restart(list(self._tokenizer.sot_sequence_including_notimestamps))
        while self._advance(search, cross):  # a search opens only so many tokens at a time
            pass
        return self._vocabulary.text([token.id for token in search.committed])

    def _advance(self, search: Search, cross: FrameCache) -> bool:
        """Read on; whether there may be more."""
        steps = search.advance(cross, n_in_segment=0, final_end=sys.maxsize)
        try:
            job = next(steps)
            while True:
                job = steps.send(self._decoder.step([job])[0])
        except StopIteration as stop:
            return bool(stop.value) and not search.is_full


def parse_mode(name: str) -> Chunking:
    """``CHUNK`` or ``CHUNK+RIGHT``, in ms.

    Raises:
        ForesoundError: A length is outside its range.
        ValueError: A part is no number.
    """
    chunk_ms, _, right_context_ms = name.partition("+")
    return Chunking.from_ms(int(chunk_ms), initial=0, right_context_ms=int(right_context_ms or 0))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    args = _parse(argv)
    try:
        modes = {name: parse_mode(name) for name in args.modes.split(",")}
        spoken = [u for u in read_manifest(args.manifest) if u.text and u.duration_s <= MAX_S]
        recognizer = Recognizer.load(args.model, adapter=args.adapter, weights="fp32")
    except (ForesoundError, ValueError) as error:
        print(f"frames: {error}", file=sys.stderr)
        return 2
    utterances, reader = spoken[: args.limit], WholeReader(recognizer)
    edits = {name: WerResult() for name in (*modes, "offline")}
    for utterance in tqdm(utterances, unit="utterance", disable=None):
        samples, text = load_audio(utterance), utterance.text or ""
        for name, chunking in modes.items():
            edits[name] += count_edits(text, hypothesis=reader.read(samples, chunking))
        edits["offline"] += count_edits(text, hypothesis=recognizer.transcribe_offline(samples))
    print(f"{args.model}: {len(utterances)} utterances, {edits['offline'].n_words} words")
    for name, each in edits.items():
        print(f"{name:12s} {100 * (each.wer or 0):6.2f} % {each.n_edits:5d} edits")
    rows = {name: {"wer": each.wer, "n_edits": each.n_edits} for name, each in edits.items()}
    report = {"benchmark": "frames", "model": args.model, "n_utterances": len(utterances)}
    print(json.dumps(report | {"n_words": edits["offline"].n_words, "rows": rows, **machine()}))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Word error rate where every frame is read at once.")
    add = parser.add_argument
    add("--manifest", type=Path, required=True, metavar="M.jsonl")
    add("--limit", type=int, default=40, metavar="N", help="the first utterances (default: 40)")
    add("--model", default="tiny.en")
    add("--adapter", default="auto", metavar="A", help="auto, none or a folder (default: auto)")
    add("--modes", default="300,600,300+300", metavar="C[+R],...", help="chunks and right contexts, ms")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
