"""What a file of Whisper weights held, the checks it must pass, and the model built from it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from whisper.model import ModelDimensions, Whisper, sinusoids

from asr.errors import CheckpointError

VOCABULARY_SIZES = (51864, 51865, 51866)  # English only, multilingual, multilingual with Cantonese (large-v3)
POSITIONS = "encoder.positional_embedding"
EMBEDDING = "decoder.token_embedding.weight"
PROJECTION = "proj_out.weight"  # some formats store the output projection, in Whisper the token embedding
MAX_LISTED = 5  # names of one kind in an error message
_POSITIONS_TOLERANCE = 5e-3  # stored positions are rounded, to bfloat16 at worst


@dataclass(frozen=True)
class Weights:
    """What a file held, before it is checked.

    Attributes:
        parameters: openai-whisper names to tensors of any float type.
        n_audio_head: attention heads per encoder layer.
        n_text_head: attention heads per decoder layer.
        stated: dimensions that the file or its config states; they must agree with the tensors.
        alignment_heads: whisper's packed form, or (layer, head) pairs; None keeps whisper's default.
    """

    parameters: Mapping[str, Tensor]
    n_audio_head: int
    n_text_head: int
    stated: Mapping[str, int] = field(default_factory=dict)
    alignment_heads: bytes | Sequence[Sequence[int]] | None = None


def hash_weights(parameters: Mapping[str, Tensor]) -> str:
    """Identifies Whisper weights, whatever file they came from.

    Args:
        parameters: openai-whisper names to tensors. The encoder's positions are left out: they are computed,
            and files differ in how they round them.

    Returns:
        The SHA-256 (hexadecimal) over each parameter's name, shape and float16 values, in order of names.
    """
    digest = hashlib.sha256()
    for name in sorted(set(parameters) - {POSITIONS}):
        value = parameters[name].detach().cpu()
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(value.half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that belongs to a model folder.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        CheckpointError: the file is missing or holds anything but a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: fetch it from where the weights came") from None
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: expected JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: expected a JSON object, found {type(content).__name__}")
    return content


def build_model(weights: Weights, *, source: str) -> Whisper:
    """Checks the weights and builds the model from them.

    Args:
        weights: what was read.
        source: what error messages call the file.

    Returns:
        The model in float32 and eval mode, with whisper's own encoder positions and its alignment heads.

    Raises:
        CheckpointError: the weights are not, or not only, a Whisper model's.
    """
    dims = _dimensions(weights, source=source)
    model = Whisper(dims)
    parameters = dict(weights.parameters)
    projection = parameters.pop(PROJECTION, None)
    _check_names_and_shapes(model.state_dict(), parameters, source=source)
    if projection is not None and not torch.equal(projection.float(), parameters[EMBEDDING].float()):
        raise CheckpointError(f"{source} is no Whisper: its output projection is not its token embedding")
    parameters[POSITIONS] = _check_positions(parameters[POSITIONS], source=source)
    model.load_state_dict({name: value.float() for name, value in parameters.items()}, strict=True)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise CheckpointError(f"{source} is damaged: {name} holds NaN or infinity; fetch it again")
    _set_alignment_heads(model, weights.alignment_heads, source=source)
    return model.eval()


def _dimensions(weights: Weights, *, source: str) -> ModelDimensions:
    """Derives the dimensions from the tensors, which bounds what a wrong file can make us allocate."""
    parameters = weights.parameters

    def shape(name: str, n_axes: int) -> list[int]:
        value = parameters.get(name)
        if not isinstance(value, Tensor) or value.ndim != n_axes:
            found = "nothing" if value is None else f"shape {list(getattr(value, 'shape', ()))}"
            raise CheckpointError(
                f"{source} is no Whisper: expected {name} with {n_axes} axes, found {found}"
            )
        return list(value.shape)

    def n_layer(stack: str) -> int:
        matches = (re.match(rf"{stack}\.blocks\.(\d+)\.", name) for name in parameters)
        return len({match[1] for match in matches if match})

    n_audio_state, n_mels, _ = shape("encoder.conv1.weight", 3)
    n_vocab, n_text_state = shape(EMBEDDING, 2)
    dims = ModelDimensions(
        n_mels=n_mels,
        n_audio_ctx=shape(POSITIONS, 2)[0],
        n_audio_state=n_audio_state,
        n_audio_head=weights.n_audio_head,
        n_audio_layer=n_layer("encoder"),
        n_vocab=n_vocab,
        n_text_ctx=shape("decoder.positional_embedding", 2)[0],
        n_text_state=n_text_state,
        n_text_head=weights.n_text_head,
        n_text_layer=n_layer("decoder"),
    )
    _check_dimensions(dims, weights.stated, source=source)
    return dims


def _check_dimensions(dims: ModelDimensions, stated: Mapping[str, int], *, source: str) -> None:
    for name, value in stated.items():
        if value != getattr(dims, name):
            raise CheckpointError(
                f"{source} contradicts itself: expected the stated {name} {value}, "
                f"found {getattr(dims, name)} in its weights"
            )
    if dims.n_vocab not in VOCABULARY_SIZES:
        sizes = ", ".join(map(str, VOCABULARY_SIZES))
        raise CheckpointError(f"{source} has {dims.n_vocab} tokens, expected one of Whisper's sizes: {sizes}")
    for stack, n_state, n_head in (
        ("encoder", dims.n_audio_state, dims.n_audio_head),
        ("decoder", dims.n_text_state, dims.n_text_head),
    ):
        if not isinstance(n_head, int) or n_head < 1 or n_state % n_head or n_state % 2:
            raise CheckpointError(
                f"{source} is no Whisper: expected attention heads that share the {stack}'s {n_state} "
                f"channels, found {n_head}"
            )


def _check_names_and_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Any], *, source: str) -> None:
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(map(str, found.keys() - expected.keys())),
        "of another shape": [
            f"{name} (expected {list(value.shape)}, found {list(getattr(found[name], 'shape', ()))})"
            for name, value in expected.items()
            if name in found and getattr(found[name], "shape", None) != value.shape
        ],
        "not of a float type": [
            name
            for name, value in found.items()
            if name in expected and isinstance(value, Tensor) and not value.is_floating_point()
        ],
    }
    listed = [
        f"{len(names)} {kind}: {', '.join(names[:MAX_LISTED])}{' ...' if len(names) > MAX_LISTED else ''}"
        for kind, names in problems.items()
        if names
    ]
    if listed:
        raise CheckpointError(f"{source} does not hold exactly Whisper's parameters; {'; '.join(listed)}")


def _check_positions(found: Tensor, *, source: str) -> Tensor:
    """Returns whisper's own encoder positions, shape (T, D), if the stored ones are these after rounding."""
    positions = sinusoids(*found.shape)
    distance = (found.float() - positions).abs().max().item()
    if not distance <= _POSITIONS_TOLERANCE:
        raise CheckpointError(
            f"{source} is no Whisper: expected Whisper's sinusoids in {POSITIONS}, "
            f"found values that differ by up to {distance:.3g}"
        )
    return positions


def _set_alignment_heads(
    model: Whisper, heads: bytes | Sequence[Sequence[int]] | None, *, source: str
) -> None:
    if heads is None:
        return  # whisper's default: all heads of the last half of the layers
    if isinstance(heads, bytes):
        model.set_alignment_heads(heads)
        return
    mask = torch.zeros(model.dims.n_text_layer, model.dims.n_text_head, dtype=torch.bool)
    try:
        for layer, head in heads:
            mask[layer, head] = True
    except (TypeError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{source} lists alignment heads {heads}, expected [layer, head] pairs below {list(mask.shape)}"
        ) from error
    model.register_buffer("alignment_heads", mask.to_sparse(), persistent=False)
