"""Settings of a training run, as typed frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataConfig:
    """Where the speech is and how it is turned into training streams."""

    manifest: Path
    aligned: Path  # word times written by training.alignment
    noise_manifest: Path | None = None
    batch_s: float = 110.0  # padded seconds of audio per batch
    joined_max_s: float = 26.0  # neighbouring utterances are joined up to this
    short_share: float = 0.2  # of streams are kept short instead
    speeds: tuple[float, ...] = (0.9, 1.0, 1.0, 1.1)
    noise_share: float = 0.4  # of streams get noise
    noise_only_share: float = 0.03  # of batches' streams hold nothing but noise or silence
    prompt_share: float = 0.35  # of streams with a known past are given it as prompt
    cut_share: float = 0.3  # of streams begin in the middle of an utterance, as after re-anchoring
    min_confidence: float = 0.05  # words below it, and those beside them, are not trained on


@dataclass(frozen=True)
class LossConfig:
    """The parts of the loss and their weights."""

    feature_weight: float = 2.0  # distillation of the full-context encoder's features
    teacher_weight: float = 0.5  # KL to the full-context model's next-token distribution
    teacher_share: float = 0.5  # of streams are shown to the teacher, which costs as much as the student
    margin_s: float = 0.08  # a word is due this long after its end
    full_share: float = 0.25  # of streams decode with every frame visible


@dataclass(frozen=True)
class TrainConfig:
    """One run."""

    data: DataConfig
    loss: LossConfig
    output: Path
    model: str = "tiny.en"
    start_from: Path | None = None  # an adapter folder to train further; it decides the ranks
    encoder_rank: int = 64
    decoder_rank: int = 32
    chunk_ms: tuple[int, ...] = (40, 80, 160, 300, 300, 600, 1000)  # drawn per batch; 300 twice as often
    initial_chunks: int = 1
    left_context_s: float = 10.0
    steps: int = 2000
    warmup_steps: int = 60
    learning_rate: float = 1e-3
    accumulate: int = 1  # batches per optimiser step
    clip_norm: float = 1.0
    seed: int = 1
    checkpoint_every: int = 100
    evaluate_every: int = 500
    dev_manifest: Path | None = None
    dev_limit: int = 60
    dev_chunk_ms: int = 300
    device: str = "cpu"


@dataclass(frozen=True)
class HeadLossConfig:
    """The parts of a transducer head's loss and their weights."""

    ctc_weight: float = 0.3  # auxiliary CTC on the head's frames
    fast_emit: float = 0.01  # FastEmit's lambda
    early_s: float = 0.6  # a token may come out this long before its word's end ...
    late_s: float = 0.4  # ... and this long after it
    latency_weight: float = 0.0  # per second of mean delay: the latency regulariser
    plain_weight: float = 0.0  # of the mean gate: the plain regulariser
    arrival: str = "frame"  # when delays begin: "frame" by frame, or at the end of the encoder's "chunk"


@dataclass(frozen=True)
class HeadTrainConfig:
    """One run that trains a transducer head on a frozen causal encoder."""

    data: DataConfig
    loss: HeadLossConfig
    output: Path
    model: str = "tiny.en"
    adapter: str = "auto"  # as in Recognizer.load
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
    seed: int = 1
    checkpoint_every: int = 100
    statistics_every: int = 50
    evaluate_every: int = 500
    dev_manifest: Path | None = None
    dev_limit: int = 60
    dev_chunk_ms: int = 300
    dev_beam_size: int = 4  # hypotheses; greedy search waits where the loss has spread a token over frames
    device: str = "cpu"
