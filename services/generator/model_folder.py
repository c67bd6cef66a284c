"""Where a model's files are: a folder, or a snapshot from the model hub; and what they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from instructzero.errors import InvalidRequest
from services.generator.settings import GeneratorSettings

WANTED = ("*.json", "model*.safetensors", "tokenizer*", "*.model", "*.tiktoken", "*.txt", "*.jinja")
UNWANTED = ("original/*", "consolidated*", "onnx/*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
DESCRIBED = ("config.json", "tokenizer.json", "tokenizer_config.json", "*.jinja", "*.model")
"""Small files that belong to a model's identity beside its weights."""
BLOCK = 64 * 1024
N_BLOCKS = 64


class ModelFolder(NamedTuple):
    """A model's files.

    Attributes:
        name: Hugging Face id, or `local` for a folder: a folder that moves stays the same model.
        revision: the commit of a Hugging Face id; empty for a folder.
        weights: identity of the files, see `weights_identity`.
    """

    path: Path
    name: str
    revision: str
    weights: str


def find_model(settings: GeneratorSettings) -> ModelFolder:
    """Find a model's files, from the model hub if need be.

    Raises:
        InvalidRequest: there is no such model; says what to do.
    """
    if not settings.model:
        raise _problem(
            "say which model writes: --model (or IZ_GENERATOR_MODEL), a Hugging Face id or a folder"
        )
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        if settings.revision is not None:
            raise _problem("a folder has no revisions: leave the revision out, or name a hub id")
        _check_files(folder)
        return ModelFolder(folder, "local", "", weights_identity(folder))
    if _looks_like_a_path(settings.model):
        raise _problem(f"there is no folder {settings.model}; check the path of the model")
    folder = _download(settings, settings.model)
    _check_files(folder)
    return ModelFolder(folder, settings.model, folder.name, weights_identity(folder))


def weights_identity(folder: Path) -> str:
    """Return a SHA-256 over the checkpoint's files.

    Of a large weight file, its size and 64 evenly spaced blocks are read: any training changes
    every block, and the files of a large model are not read twice before it can start.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in DESCRIBED for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for number in range(N_BLOCKS):
                file.seek(max(0, size - BLOCK) * number // (N_BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _looks_like_a_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or "\\" in model


def _download(settings: GeneratorSettings, model: str) -> Path:
    try:
        return Path(
            snapshot_download(
                model,
                revision=settings.revision,
                allow_patterns=list(WANTED),
                ignore_patterns=list(UNWANTED),
                local_files_only=settings.offline,
                endpoint=settings.hub_url,
                cache_dir=settings.hub_cache,
            )
        )
    except GatedRepoError as error:
        raise _problem(
            f"{model} is gated: accept its terms on the model's page, then set HF_TOKEN to a token "
            "of that account",
            "model_gated",
        ) from error
    except RevisionNotFoundError as error:
        raise _problem(
            f"{model} has no revision {settings.revision}; name a branch, a tag or a commit of it",
            "revision_not_found",
        ) from error
    except RepositoryNotFoundError as error:
        raise _problem(
            f"the model hub knows no {model}: check the spelling (owner/name); a private model "
            "needs HF_TOKEN; a local model needs the path of its folder"
        ) from error
    except HFValidationError as error:
        raise _problem(f"{model} is neither a folder nor a Hugging Face id (owner/name)") from error
    except LocalEntryNotFoundError as error:
        raise _unreachable(model) from error
    except (EntryNotFoundError, HfHubHTTPError) as error:
        raise _problem(
            f"the model hub did not give {model} ({type(error).__name__}); try again later"
        ) from error
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise _unreachable(model) from error


def _check_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise _problem(
            f"{folder} holds no config.json, so it is no model folder; give the folder that "
            "`save_pretrained` wrote"
        )
    if not any(folder.glob("*.safetensors")):
        raise _problem(
            f"{folder} holds no safetensors weights; other formats can run code when they are read "
            "and are not: save the model again with save_pretrained(..., safe_serialization=True)",
            "unsafe_weights",
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise _problem(
            f"{folder} holds no tokenizer ({', '.join(TOKENIZER_FILES)}); save it beside the "
            "weights with tokenizer.save_pretrained(...)",
            "tokenizer_missing",
        )


def _unreachable(model: str) -> InvalidRequest:
    return _problem(
        f"{model} is not on this machine and the model hub does not answer: go online once to "
        "fetch it, or give the path of a folder that holds it",
        "hub_unreachable",
    )


def _problem(detail: str, reason: str = "model_not_found") -> InvalidRequest:
    return InvalidRequest(detail, reason=reason)
