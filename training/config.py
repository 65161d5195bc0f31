"""Settings of training runs, as typed frozen dataclasses.

:mod:`training.finetune.config` composes them into what a YAML file says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

_STRICT: dict[str, Any] = {"extra": "forbid"}  # for pydantic, where a section comes from a file


@dataclass(frozen=True)
class DataConfig:
    """Where the speech is and how it is turned into training streams."""

    __pydantic_config__: ClassVar = _STRICT

    manifest: Path
    aligned: Path  # word times written by foresound align
    noise_manifest: Path | None = None
    batch_s: float = 110.0  # padded seconds of audio per batch
    joined_max_s: float = 26.0  # neighbouring utterances are joined up to this
    short_share: float = 0.2  # of streams are kept short instead
    speeds: tuple[float, ...] = (0.9, 1.0, 1.0, 1.1)
    noise_share: float = 0.4  # of streams get noise
    reverb_share: float = 0.3  # of streams are heard in a room
    noise_only_share: float = 0.03  # of batches' streams hold nothing but noise or silence
    prompt_share: float = 0.35  # of streams with a known past are given it as prompt
    cut_share: float = 0.3  # of streams begin in the middle of an utterance, as after re-anchoring
    min_confidence: float = 0.05  # words below it, and those beside them, are not trained on
    replay_manifest: Path | None = None  # general recordings, trained on too so that they are not forgotten
    replay_aligned: Path | None = None  # their word times
    replay_share: float = 0.5  # of each epoch's audio


@dataclass(frozen=True)
class LossConfig:
    """The parts of the loss and their weights."""

    __pydantic_config__: ClassVar = _STRICT

    feature_weight: float = 2.0  # distillation of the full-context encoder's features
    teacher_weight: float = 0.5  # KL to the full-context model's next-token distribution
    teacher_share: float = 0.5  # of streams are shown to the teacher, which costs as much as the student
    margin_s: float = 0.08  # a word is due this long after its end
    full_share: float = 0.25  # of streams decode with every frame visible


@dataclass(frozen=True)
class RobustConfig:
    """Protection against wrong words in transcripts.

    Every word keeps the average of the probabilities that the model itself gave it, beginning with the
    aligner's confidence. A word that stays improbable together with its neighbours is probably wrong: models
    learn what is consistent before they learn by heart. It counts less, and so does the silence asked for
    before it. Batches are not scaled up for it.
    """

    __pydantic_config__: ClassVar = _STRICT

    method: str = "none"  # or "downweight", for many epochs on few transcripts, some of them wrong
    trust: float = 0.4  # a word believed this much or more counts fully, half as much belief a quarter
    momentum: float = 0.7  # of the average, per time that a word is seen
    neighbours: int = 3  # words on each side whose belief counts as much as the word's own


@dataclass(frozen=True)
class RunConfig:
    """What all training runs have."""

    output: Path
    model: str = "tiny.en"
    seed: int = 1
    device: str = "cpu"
    precision: str = "bf16"  # mixed precision: bf16, fp16 or no
    dev_manifest: Path | None = None  # chooses the best checkpoint
    general_manifest: Path | None = None  # watched, so that nothing is forgotten
    general_tolerance: float = 0.02  # share of its word error rate by which it may rise
    dev_limit: int = 60
    dev_chunk_ms: int = 300
    tensorboard: bool = False
    license: str = ""  # of what is trained, for its card


@dataclass(frozen=True)
class AdapterPlan:
    """How a causal adapter is trained."""

    __pydantic_config__: ClassVar = _STRICT

    start_from: str = "none"  # auto (the shipped one), none, or a folder, which decides ranks and modules
    encoder_rank: int = 64  # 0 leaves the encoder alone
    decoder_rank: int = 32  # 0 leaves the decoder alone
    modules: tuple[str, ...] = ("query", "key", "value", "out", "mlp")
    chunk_ms: tuple[int, ...] = (40, 80, 160, 300, 300, 600, 1000)  # drawn per batch; 300 twice as often
    chunk_weights: tuple[float, ...] = ()  # how often each is drawn; empty is evenly
    initial_chunks: int = 1
    left_context_s: float = 10.0
    steps: int = 2000
    warmup_steps: int = 60
    learning_rate: float = 1e-3
    accumulate: int = 1  # batches per optimiser step and process
    clip_norm: float = 1.0
    gradient_checkpointing: bool = False  # compute what is inside encoder and decoder twice, keep it never
    checkpoint_every: int = 100
    evaluate_every: int = 500
    patience: int = 0  # evaluations without a better one after which a run stops; 0 never stops early


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AdapterPlan, RunConfig):
    """One run that trains an adapter."""

    data: DataConfig
    loss: LossConfig
    robust: RobustConfig = field(default_factory=lambda: RobustConfig(method="none"))


@dataclass(frozen=True)
class HeadLossConfig:
    """The parts of a transducer head's loss and their weights."""

    __pydantic_config__: ClassVar = _STRICT

    ctc_weight: float = 0.3  # auxiliary CTC on the head's frames
    fast_emit: float = 0.01  # FastEmit's lambda
    early_s: float = 0.6  # a token may come out this long before its word's end ...
    late_s: float = 0.4  # ... and this long after it
    latency_weight: float = 0.0  # per second of mean delay: the latency regulariser
    plain_weight: float = 0.0  # of the mean gate: the plain regulariser
    arrival: str = "frame"  # when delays begin: "frame" by frame, or at the end of the encoder's "chunk"


@dataclass(frozen=True)
class HeadPlan:
    """How a transducer head is trained."""

    __pydantic_config__: ClassVar = _STRICT

    start_from: Path | None = None  # a head's folder, whose weights and sizes are taken
    features: Path | None = None  # folder where encoder features are kept for other runs on the same data
    drawn_epochs: int = 0  # then their streams, noises and features come again; 0: every epoch is drawn anew
    n_tokens: int = 1024
    width: int = 256
    n_blocks: int = 3
    n_head: int = 4
    max_look: int = 6
    left_context: int = 125
    embedding_width: int = 256
    joint_width: int = 320
    fixed_look: tuple[int, ...] = ()  # one per block: never adaptive, for references
    drawn_looks: tuple[
        int, ...
    ] = ()  # one is drawn per batch, which every block looks: all such references at once
    whisper_embeddings: bool = True  # the predictor's embeddings begin as Whisper's
    dropout: float = 0.1
    masked_share: float = 0.1  # of encoder frames, hidden in spans of up to 0.3 s
    temperature_first: float = 1.0  # until the regularisers have set in
    temperature_last: float = 0.1
    penalty_ramp: tuple[float, ...] = (0.2, 0.5)  # shares of the run between which the regularisers set in
    hard_share: float = 0.15  # last part of the run, in which gates are hard and schedulers rest
    bias_spread: float = 1.0  # the dial is turned at random by up to this in training
    chunk_ms: tuple[int, ...] = (80, 160, 300, 300, 600)  # drawn per batch
    steps: int = 4000
    warmup_steps: int = 200
    learning_rate: float = 1e-3
    scheduler_rate: float = 0.1  # of the schedulers' learning rate to that of the rest
    clip_norm: float = 2.0
    checkpoint_every: int = 100
    statistics_every: int = 50
    evaluate_every: int = 500
    dev_beam_size: int = 4  # hypotheses; greedy search waits where the loss has spread a token over frames


@dataclass(frozen=True, kw_only=True)
class HeadTrainConfig(HeadPlan, RunConfig):
    """One run that trains a transducer head on a frozen causal encoder."""

    data: DataConfig
    loss: HeadLossConfig
    adapter: str = "auto"  # as in Recognizer.load


@dataclass(frozen=True, kw_only=True)
class WaitTrainConfig:
    """A run that teaches a trained head which provisional frames had better wait."""

    head: Path  # its folder
    output: Path  # folder for the head that has learned it
    manifest: Path  # speech to learn from; texts are not needed
    dev_manifest: Path  # speech on which the dial is measured
    model: str = "tiny.en"
    adapter: str = "auto"  # as in Recognizer.load
    chunk_ms: tuple[int, ...] = (80, 160, 300)
    right_context_ms: int = 320
    max_future: int = 16  # head frames of future that the scheduler tells apart
    limit: int = 300  # utterances of the manifest, evenly spread
    dev_limit: int = 60
    latency_price: float = 0.25  # nats per second of waiting where the dial is at 0 ...
    dial_spread: float = (
        4.0  # ... e times less for each 1 that it is turned up; turned at random by up to this
    )
    steps: int = 2000
    learning_rate: float = 2e-3
    batch_streams: int = 4
    seed: int = 1
