"""What a head's training run starts from: frozen weights, a head, data and the sets that it is judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from whisper.model import Whisper

from asr.adapters import merge_adapter, shipped_adapter
from asr.bpe import TruncatedBpe
from asr.checkpoint import Checkpoint, load_checkpoint
from asr.chunking import Chunking
from asr.encoder import CausalEncoder
from asr.errors import OptionError
from asr.head import HeadConfig, TransducerHead
from asr.head_files import HeadCard, adapter_hash, load_head
from asr.recognizer import LEFT_CONTEXT_S
from training.alignment import teacher_tokenizer
from training.config import HeadTrainConfig
from training.dataset import StreamDataset
from training.dev_sets import with_text
from training.head_data import FeatureMaker, FeatureStore, fingerprint
from training.head_evaluation import Encoded, encode_utterances
from training.manifest import read_manifest
from training.runs import every_nth
from training.speech import Speech

N_TIMED = 40  # training utterances on which a card's timing is measured
MAX_DEV_S = 29.0  # longer ones do not fit the encoder's window


@dataclass(frozen=True)
class Frozen:
    """What a run does not change."""

    base: Checkpoint
    adapter: Path | None
    encoder: CausalEncoder
    initial_chunks: int
    left_context_s: float

    @classmethod
    def load(cls, model: str, adapter: str, device: torch.device) -> Frozen:
        """The base weights with the adapter merged in, on a device."""
        base = load_checkpoint(model, device=device)
        folder = shipped_adapter(base.name) if adapter == "auto" else Path(adapter)
        if folder is None or adapter == "none":
            return cls(base, None, CausalEncoder(base.model.encoder), 1, 10.0)
        merged, card = merge_adapter(base.model, folder, weights_hash=base.weights_hash)
        left_context_s = min(card.left_context_s, LEFT_CONTEXT_S)  # as streams have it
        return cls(base, folder, CausalEncoder(merged.encoder), card.initial_chunks, left_context_s)

    @property
    def model(self) -> Whisper:
        """The base model."""
        return self.base.model

    def read_head(self, folder: Path) -> tuple[TransducerHead, HeadCard]:
        """A head that was trained on this encoder, as :func:`asr.head_files.load_head` reads it."""
        hashes = {"weights_hash": self.base.weights_hash, "adapter_hash": adapter_hash(self.adapter)}
        return load_head(folder, **hashes)

    def chunking(self, chunk_ms: int, *, right_context_ms: int = 0) -> Chunking:
        """Chunks as the adapter was trained with."""
        return Chunking.from_ms(
            chunk_ms,
            initial=self.initial_chunks,
            left_context_s=self.left_context_s,
            right_context_ms=right_context_ms,
        )


@dataclass(frozen=True)
class DevSets:
    """What evaluations stream."""

    dev: list[Encoded]
    timed: list[Encoded]  # with word times


def new_head(config: HeadTrainConfig, frozen: Frozen) -> TransducerHead:
    """A fresh head, or one to be trained further."""
    sizes = HeadConfig(
        encoder_width=frozen.encoder.width,
        n_tokens=config.n_tokens,
        width=config.width,
        n_blocks=config.n_blocks,
        n_head=config.n_head,
        max_look=config.max_look,
        left_context=config.left_context,
        embedding_width=config.embedding_width,
        joint_width=config.joint_width,
    )
    if config.start_from is None:
        _check_look(config.fixed_look, config.drawn_looks, sizes)
        head = TransducerHead(sizes, dropout=config.dropout)
        if config.whisper_embeddings:
            head.transducer.start_from_embeddings(frozen.model.decoder.token_embedding.weight.cpu())
        return head
    start, _ = frozen.read_head(config.start_from)
    _check_look(config.fixed_look, config.drawn_looks, start.config)
    # What has been learned of waiting fits the frames that the head makes now, not those that it will make.
    head = TransducerHead(replace(start.config, max_future=0), dropout=config.dropout)
    head.load_state_dict(
        {name: value for name, value in start.state_dict().items() if not name.startswith("waiting.")}
    )
    return head


def _check_look(fixed_look: tuple[int, ...], drawn_looks: tuple[int, ...], sizes: HeadConfig) -> None:
    n_blocks, max_look = sizes.n_blocks, sizes.max_look
    if fixed_look and (len(fixed_look) != n_blocks or not all(0 <= look <= max_look for look in fixed_look)):
        raise OptionError(
            f"fixed_look must hold {n_blocks} numbers from 0 to {max_look}, one per block, not {fixed_look}"
        )
    if not all(0 <= look <= max_look for look in drawn_looks):
        raise OptionError(f"drawn_looks must be numbers from 0 to {max_look}, not {drawn_looks}")


def dataset(config: HeadTrainConfig, frozen: Frozen, speech: Speech) -> StreamDataset:
    """Streams of the utterances whose words are known, spelled in the head's tokens."""
    data, tokenizer = config.data, teacher_tokenizer(frozen.model)
    return StreamDataset(
        data,
        utterances=speech.utterances,
        replayed=speech.replayed,
        aligned=speech.aligned,
        noises=read_manifest(data.noise_manifest) if data.noise_manifest else [],
        tokenizer=tokenizer,
        margin_s=0.0,
        seed=config.seed,
        spelling=TruncatedBpe.of(tokenizer, config.n_tokens),
    )


def store(config: HeadTrainConfig, frozen: Frozen) -> FeatureStore:
    """Where features are kept, if they are."""
    if config.features is None:
        return FeatureStore(None, "")
    key = fingerprint(
        config.data,
        seed=config.seed,
        n_tokens=config.n_tokens,
        chunk_ms=config.chunk_ms,
        initial_chunks=frozen.initial_chunks,
        left_context_s=frozen.left_context_s,
        base=frozen.base.weights_hash,
        adapter=adapter_hash(frozen.adapter),
    )
    return FeatureStore(config.features, key)


def dev_sets(config: HeadTrainConfig, frozen: Frozen, maker: FeatureMaker, speech: Speech) -> DevSets:
    """Encode what evaluations stream, once."""
    if config.dev_manifest is None:
        return DevSets([], [])
    chunking = frozen.chunking(config.dev_chunk_ms)
    utterances = with_text(config.dev_manifest)
    dev = [u for u in every_nth(utterances, config.dev_limit) if u.duration_s < MAX_DEV_S]
    known = [u for u in speech.utterances if u.duration_s < MAX_DEV_S]
    words = {id: utterance.words for id, utterance in speech.aligned.items()}
    timed = encode_utterances(maker, every_nth(known, N_TIMED), chunking, words=words)
    return DevSets(encode_utterances(maker, dev, chunking), timed)


def feature_maker(config: HeadTrainConfig, frozen: Frozen) -> FeatureMaker:
    """The frozen encoder with the run's chunk sizes."""
    return FeatureMaker(
        frozen.encoder,
        n_mels=frozen.model.dims.n_mels,
        chunkings=[frozen.chunking(ms) for ms in config.chunk_ms],
        seed=config.seed,
    )
