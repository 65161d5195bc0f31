"""The public API: a recogniser holds the weights, each stream holds its own state.

recognizer = Recognizer.load("tiny.en")
stream = recognizer.stream(chunk_ms=300)
for block in microphone:
    for event in stream.feed(block):
        print(event)
stream.finish()
print(stream.transcript.text)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from whisper.model import Whisper
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from asr import int8, offline
from asr.adapters import merge_adapter, shipped_adapter
from asr.batch import Step, advance, step_batch
from asr.biasing import DEFAULT_STRENGTH, Strength, check_hotwords
from asr.bundle import read_bundle
from asr.checkpoint import load_checkpoint
from asr.chunking import FRAME_MS, MAX_CHUNK_MS, Chunking
from asr.decoder import Decoder
from asr.encoder import CausalEncoder
from asr.endpoint import EndpointRules
from asr.engine import Engine
from asr.errors import OptionError
from asr.events import Event
from asr.features import LogMel
from asr.head import TransducerHead
from asr.head_files import HeadCard, adapter_hash, load_head, shipped_head
from asr.listener import StreamOptions, TransducerOptions
from asr.samples import as_samples
from asr.slots import Slot, SlotPool
from asr.stream import Outcome, Stream
from asr.transducer_reader import EmissionTiming
from asr.vad import SileroVad
from asr.weight_format import choose_format

DECODERS = ("whisper", "transducer")
MAX_BEAM_SIZE = 16
MAX_OPEN_TOKENS = 16
RIGHT_CONTEXT_MS = {"whisper": 300, "transducer": 160}
WAITING_CONTEXT_MS = 320  # of a transducer whose head decides which frames wait for all of it
LEFT_CONTEXT_S = 5.0  # heard as well as 10 s (docs/performance.md), at half the attention and memory


class Recognizer:
    """Recognises speech as it arrives, with one set of weights for any number of streams.

    Attributes:
        name: Of the base weights.
        base_model: The original Whisper, for the second pass and offline transcription.
        streaming_model: The same with a causal adapter merged in.
        weights: Format in which streams are computed, ``int8`` or ``fp32``.
    """

    def __init__(
        self,
        base_model: Whisper,
        streaming_model: Whisper,
        *,
        name: str,
        initial: int = 1,
        left_context_s: float = LEFT_CONTEXT_S,
        language: str | None = None,
        head: tuple[TransducerHead, HeadCard] | None = None,
        weights: str = "fp32",
    ) -> None:
        """Use models as they are; :meth:`load` is the usual way.

        Args:
            base_model: The original weights.
            streaming_model: Weights that stream; may be ``base_model``.
            name: What to call it.
            initial: Extra chunks in a window's first chunk, as the adapter was trained.
            left_context_s: Seconds of visible past that streams use unless told otherwise.
            language: Code of the language that they speak unless told otherwise; None is the model's only
                one, or found out.
            head: The transducer's, trained on ``streaming_model``; without one there is no transducer.
            weights: Format in which ``streaming_model`` is computed, as in :meth:`load`.

        Raises:
            OptionError: The format is unknown or not for this processor.
        """
        self.name = name
        self.weights = choose_format(weights, device=streaming_model.device)
        self.base_model = base_model
        self.streaming_model = streaming_model
        self._initial = initial
        self._left_context_s = left_context_s
        self._default_language = language
        self._head_card = head[1] if head else None
        self._engine = Engine(
            base_model,
            *_streaming_parts(streaming_model, self.weights),
            LogMel(streaming_model.dims.n_mels, device=streaming_model.device),
            SileroVad(),
            head[0].to(streaming_model.device) if head else None,
        )

    @classmethod
    def load(
        cls,
        model: str | Path = "tiny.en",
        *,
        adapter: str | Path | None = "auto",
        head: str | Path | None = "auto",
        weights: str = "auto",
        device: str = "cpu",
    ) -> Recognizer:
        """Load weights, adapter and transducer head.

        Args:
            model: A checkpoint's name or path, as in :func:`asr.checkpoint.load_checkpoint`, or a folder that
                ``foresound finetune`` wrote.
            adapter: ``"auto"`` is the folder's own, or the one shipped for ``model`` if there is one; None or
                ``"none"`` is no adapter, with which streaming works badly; else an adapter's folder.
            head: ``"auto"`` is the folder's own, or the one that ships with the shipped adapter, if both are
                used; None or ``"none"`` is no head, without which there is no transducer; else a head's
                folder.
            weights: ``"int8"`` computes what streams with 8-bit weights, or 7-bit ones on processors without
                VNNI; ``"fp32"`` does not; ``"auto"`` takes int8 where all 8 bits can be used. Offline
                transcription and second passes are fp32 always.
            device: A torch device.

        Returns:
            The recogniser.

        Raises:
            OptionError: ``weights`` is unknown or not for this processor.
            CheckpointError: The weights cannot be read.
            AdapterError: The adapter or the head cannot be read or fits other weights.
        """
        bundle = read_bundle(model)
        checkpoint = load_checkpoint(bundle.base_model if bundle else model, device=device)
        own_adapter, own_head = shipped_adapter(checkpoint.name), shipped_head(checkpoint.name)
        if bundle:
            checkpoint = replace(checkpoint, name=Path(model).absolute().name)
            own_adapter = Path(bundle.adapter) if bundle.adapter else None
            own_head = Path(bundle.head) if bundle.head else None
        folder = _folder(adapter, own_adapter)
        head_folder = _folder(head, own_head if adapter == "auto" and (folder or bundle) else None)
        loaded_head = None
        if head_folder:
            hashes = {"weights_hash": checkpoint.weights_hash, "adapter_hash": adapter_hash(folder)}
            loaded_head = load_head(head_folder, **hashes)
        if folder is None:
            return cls(
                checkpoint.model, checkpoint.model, name=checkpoint.name, head=loaded_head, weights=weights
            )
        merged, card = merge_adapter(checkpoint.model, folder, weights_hash=checkpoint.weights_hash)
        return cls(
            checkpoint.model,
            merged,
            name=checkpoint.name,
            initial=card.initial_chunks,
            left_context_s=min(card.left_context_s, LEFT_CONTEXT_S),
            language=card.language,
            head=loaded_head,
            weights=weights,
        )

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that ``stream(language=...)`` takes."""
        if not self.base_model.is_multilingual:
            return ("en",)
        return tuple(LANGUAGES)[: self.base_model.num_languages]

    @property
    def decoders(self) -> tuple[str, ...]:
        """What ``stream(decoder=...)`` takes."""
        return DECODERS if self._head_card else DECODERS[:1]

    def stream(
        self,
        *,
        decoder: str = "whisper",
        latency: str | float | None = None,
        fixed_look: int | None = None,
        chunk_ms: int = 300,
        right_context_ms: int | None = None,
        beam_size: int = 1,
        open_tokens: int = 2,
        language: str | None = None,
        prompt: str | None = None,
        hotwords: Sequence[str] = (),
        hotword_strength: Strength = DEFAULT_STRENGTH,
        second_pass: bool = False,
        left_context_s: float | None = None,
        silence_ms: int = 800,
        max_segment_s: float = 30.0,
        adaptive: bool = True,
        slot: Slot | None = None,
    ) -> Stream:
        """Open a stream.

        Args:
            decoder: ``whisper``, or ``transducer``, which needs a head and looks ahead where it matters.
            latency: How far ahead the transducer's frames look on average: ``minimal``, ``low``, ``medium``,
                ``high``, or a number of ms; None is as the head was trained. What lies in a frame's own chunk
                is there anyway.
            fixed_look: Frames of 40 ms that every block of the transducer always looks ahead, or the head's
                frames always wait for, instead of choosing; a reference to compare with. 0 is causal.
            chunk_ms: Audio per encoder step, 40 to 1000, a multiple of 20: smaller is sooner, larger better.
            right_context_ms: Audio that is heard after a frame before it is final, a multiple of 20, at most
                1000 together with ``chunk_ms``. Until then it is provisional: its words are shown at once,
                but stay open, and the next step computes it again with what came after it. More is better
                and dearer. None is 300, for the transducer 160, or 320 where its head decides which frames
                wait for it; or what the chunk leaves of 1000.
            beam_size: Hypotheses, 1 to 16; 1 is greedy.
            open_tokens: Newest tokens that are never committed before the segment ends, 0 to 16; the
                transducer's own affair.
            language: Code or English name of the language spoken; None is the adapter's or the model's only
                one, or found out from the first seconds; a transducer speaks its head's, English unless told
                otherwise.
            prompt: Text before the speech, for names and style; a transducer has no use for it.
            hotwords: Names and terms to expect, at most 100 of 1 to 100 characters.
            hotword_strength: How much they are preferred.
            second_pass: Replace each finished segment's text by the original Whisper's.
            left_context_s: Seconds of visible past; None is 5, or what the adapter was trained with if less.
            silence_ms: Silence after speech that ends a segment, at least 100.
            max_segment_s: Longest segment, 5 to 30 s.
            adaptive: Encode and decode nothing where silence needs nothing; for Whisper's decoder.
            slot: Preallocated state from :meth:`slots`, the stream's alone until given back; None allocates.

        Returns:
            The stream.

        Raises:
            OptionError: A value is outside its range.
        """
        transducer = self._transducer(decoder, latency, fixed_look, chunk_ms)
        if right_context_ms is None:
            waits = transducer is not None and transducer.policy.wait is not None
            usual_ms = WAITING_CONTEXT_MS if waits else RIGHT_CONTEXT_MS[decoder]
            right_context_ms = max(0, min(usual_ms, MAX_CHUNK_MS - chunk_ms))
        _check_range("beam_size", beam_size, low=1, high=MAX_BEAM_SIZE)
        _check_range("open_tokens", open_tokens, low=0, high=MAX_OPEN_TOKENS)
        options = StreamOptions(
            Chunking.from_ms(
                chunk_ms,
                initial=self._initial,
                left_context_s=self._left_context_s if left_context_s is None else left_context_s,
                right_context_ms=right_context_ms,
            ),
            beam_size=beam_size,
            open_tokens=open_tokens,
            language=self._language(language),
            prompt=prompt,
            hotwords=check_hotwords(hotwords),
            strength=hotword_strength,
            second_pass=second_pass,
            rules=EndpointRules(silence_ms, max_segment_s),
            adaptive=adaptive,
            transducer=transducer,
        )
        with torch.inference_mode():
            if slot is None:
                slot = self._engine.new_slot(left_context=options.chunking.left_context)
            return Stream(self._engine, options, slot)

    def slots(self, n_slots: int, *, left_context_s: float | None = None) -> SlotPool:
        """Allocate the state of streams.

        Args:
            n_slots: How many.
            left_context_s: Seconds of visible past that they may use; None is what they use by default.

        Returns:
            The slots.
        """
        left_context = round((left_context_s or self._left_context_s) * 1000 / FRAME_MS)
        with torch.inference_mode():
            return SlotPool([self._engine.new_slot(left_context=left_context) for _ in range(n_slots)])

    def step_batch(self, pairs: Sequence[tuple[Stream, np.ndarray]]) -> list[list[Event]]:
        """Feed many streams of this recogniser at once; see :func:`asr.batch.step_batch`."""
        return step_batch(self._engine, pairs)

    def advance(self, steps: Sequence[Step]) -> list[list[Outcome] | Exception]:
        """Feed, flush and finish many streams of this recogniser at once; see :func:`asr.batch.advance`."""
        return advance(self._engine, steps)

    def transcribe_offline(self, samples: np.ndarray) -> str:
        """The original Whisper's text: no adapter, 30 s windows padded with silence, greedy.

        Args:
            samples: As in :meth:`asr.stream.Stream.feed`, of any length.

        Returns:
            The text, without surrounding blanks.

        Raises:
            AudioError: The samples are unusable.
        """
        with torch.inference_mode():
            return offline.transcribe(self.base_model, as_samples(samples))

    def _transducer(
        self, decoder: str, latency: str | float | None, fixed_look: int | None, chunk_ms: int
    ) -> TransducerOptions | None:
        """How the transducer reads a stream; None if Whisper's decoder does."""
        if decoder not in DECODERS:
            raise OptionError(f"decoder must be one of {', '.join(self.decoders)}, not {decoder!r}")
        if decoder == "whisper":
            if latency is not None or fixed_look is not None:
                raise OptionError(
                    f"{'fixed_look' if latency is None else f'latency {latency!r}'} is for the transducer; "
                    "choose decoder='transducer', or chunk_ms"
                )
            return None
        card = self._head_card
        if card is None:
            raise OptionError(
                f"decoder 'transducer' needs a head and none is loaded with {self.name}; give as head the "
                "folder of one that was trained on this model and adapter, or choose decoder 'whisper'"
            )
        timing = EmissionTiming.from_ms(lead_ms=card.lead_ms, lag_ms=card.lag_ms)
        policy = card.policy(latency=latency, fixed_look=fixed_look, chunk_ms=chunk_ms)
        return TransducerOptions(policy, timing)

    def _language(self, language: str | None) -> str | None:
        if language is None:
            return self._default_language
        code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
        if code not in self.languages:
            raise OptionError(
                f"language must be one of {', '.join(self.languages)} for {self.name}, not {language!r}"
            )
        return code


def _streaming_parts(model: Whisper, weights: str) -> tuple[CausalEncoder, Decoder]:
    """What streams run: the model's modules, or copies in 8 bits with caches in 16."""
    if weights == "fp32":
        return CausalEncoder(model.encoder), Decoder(model.decoder, model.alignment_heads)
    return (
        CausalEncoder(model.encoder, blocks=int8.encoder_blocks(model.encoder), cache_dtype=torch.bfloat16),
        Decoder(
            model.decoder,
            model.alignment_heads,
            blocks=int8.decoder_blocks(model.decoder),
            vocabulary=int8.Int8Linear(model.decoder.token_embedding.weight),
            cache_dtype=torch.bfloat16,
        ),
    )


def _check_range(name: str, value: int, *, low: int, high: int) -> None:
    if not low <= value <= high:
        raise OptionError(f"{name} must be from {low} to {high}, not {value}")


def _folder(choice: str | Path | None, shipped: Path | None) -> Path | None:
    """The folder that a choice of an adapter or a head means."""
    if choice is None or choice == "none":
        return None
    return shipped if choice == "auto" else Path(choice)
