"""Whisper parameters from a Hugging Face folder: config.json and model.safetensors, whole or in shards."""

import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from asr.errors import CheckpointError
from asr.weights import PROJECTION, Weights, read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Applied in order to each name, after its leading "model." is gone.
_RENAMES: tuple[tuple[str, str], ...] = (
    (r"^(encoder|decoder)\.layers\.", r"\1.blocks."),
    (r"^(encoder|decoder)\.embed_positions\.weight$", r"\1.positional_embedding"),
    (r"^decoder\.embed_tokens\.", "decoder.token_embedding."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.self_attn\.", ".attn."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
)

_STATED = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_layer": "decoder_layers",
}


def read_whisper(folder: Path) -> Weights:
    """Reads the weights and what the configs say about them.

    Args:
        folder: holds config.json and model.safetensors or the index of its shards. generation_config.json
            is read for the alignment heads when it is there.

    Returns:
        The weights under openai-whisper's names.

    Raises:
        CheckpointError: a file is missing, damaged, or not of a Whisper model.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind != "whisper":
        raise CheckpointError(f"{folder} is no Whisper: expected model_type 'whisper', found {kind!r}")
    heads = {}
    for stack in ("encoder", "decoder"):
        key = f"{stack}_attention_heads"
        if key not in config:
            raise CheckpointError(f"{folder / 'config.json'} lacks {key!r}; fetch it again")
        heads[stack] = config[key]
    return Weights(
        {_openai_name(name): value for name, value in _read_tensors(folder).items()},
        n_audio_head=heads["encoder"],
        n_text_head=heads["decoder"],
        stated={ours: config[theirs] for ours, theirs in _STATED.items() if theirs in config},
        alignment_heads=_alignment_heads(folder, config),
    )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS_FILE).is_file():
        files = [folder / WEIGHTS_FILE]
    else:
        shards = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointError(
                f"{folder / INDEX_FILE} is damaged: expected a 'weight_map' of names to files; fetch it again"
            )
        # Only the last part of a name counts, so that an index cannot point outside its folder.
        files = [folder / name for name in sorted({Path(name).name for name in shards.values()})]
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {INDEX_FILE} names it; fetch it too")
        try:
            tensors.update(safetensors.torch.load_file(file))
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f"{file} cannot be read: expected safetensors, found a truncated or foreign file ({error}); "
                "fetch it again"
            ) from error
    return tensors


def _openai_name(name: str) -> str:
    if name == PROJECTION:
        return name
    name = name.removeprefix("model.")
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _alignment_heads(folder: Path, config: dict[str, Any]) -> Any:
    generation = folder / "generation_config.json"
    found = read_json(generation).get("alignment_heads") if generation.is_file() else None
    return found if found is not None else config.get("alignment_heads")
