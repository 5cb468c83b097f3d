"""Reads frozen models of transformers and diffusers from folders or from the hub's cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from scaledreamer.storage import read_json, resolve_folder, sha256_file

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_TEXT_FILES = (".json", ".txt", ".model")
"""Configurations and tokenizers; taken whole, since they are small."""
_ROOT_FILES = ("model_index.json", "config.json")
_STEMS = ("model", "diffusion_pytorch_model")
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})(/.*)?$")


def locate(spec: str, field: str = "folder") -> Path:
    """The folder of a model that a user named: `toybox:prior`, a path, or a hub id `OWNER/NAME`.

    A hub id may end in `@REVISION`. What the local cache holds of it is taken as it is, so that a
    run resumes with the weights it began with; else configurations and tokenizers are downloaded,
    and weights when `load_pretrained` wants them.
    Raises: ValueError, naming the configuration's `field`, when there is no such folder or
    repository, or the hub can't be reached.
    """
    match = _HUB_ID.fullmatch(spec)
    is_path = spec.startswith((".", "/", "~")) or Path(spec).is_dir()
    if match is None or is_path:
        try:
            return resolve_folder(spec)
        except ValueError as error:
            raise ValueError(f"{field}: {error}, or a hub id OWNER/NAME") from error
    repository, revision = match[1], match[2]
    try:
        found = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        if any((found / name).is_file() for name in _ROOT_FILES):
            return found
    except (OSError, HFValidationError):
        pass  # not in the cache: ask the hub
    try:
        patterns = [f"*{suffix}" for suffix in _TEXT_FILES]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (OSError, HTTPError, HFValidationError) as error:
        raise ValueError(
            f"{field}: got {repository!r}; no such folder, nor in the local cache, and the hub "
            f"gave none ({_one_line(error)}); give a downloaded folder, or check name and network"
        ) from None


def _fetch_weights(folder: Path) -> None:
    """Downloads a model's weights where its folder lies in a snapshot of the hub's cache.

    Raises: ValueError when the hub can't be reached or has none.
    """
    snapshot = _SNAPSHOT.search(folder.as_posix())
    if snapshot is None:
        return
    repository, commit, inner = snapshot[1].replace("--", "/", 1), snapshot[2], snapshot[3] or ""
    try:
        names = list_repo_files(repository, revision=commit)
        wanted = wanted_weights(names, inner.strip("/"))
        snapshot_download(repository, revision=commit, allow_patterns=wanted)
    except (OSError, HTTPError) as error:
        raise ValueError(
            f"{folder}: has no weights yet, and the hub gave none ({_one_line(error)}); check the "
            "network, or give a downloaded folder"
        ) from error


def wanted_weights(names: Iterable[str], folder: str) -> list[str]:
    """Of a repository's files, a folder's safetensors in full precision, or else "fp16".

    At the top lie whole pipelines in one file, too: there only files that a model's class names.
    """
    here = [
        name
        for name in names
        if name.rpartition("/")[0] == folder and name.endswith(".safetensors")
    ]
    here = [name for name in here if name.rpartition("/")[2].startswith(_STEMS)]
    plain = [name for name in here if _variant(name) is None]
    return sorted(plain or [name for name in here if _variant(name) == "fp16"])


def _variant(name: str) -> str | None:
    """ "fp16" of model.fp16.safetensors or model.fp16-00001-of-00002.safetensors; else None."""
    parts = name.rpartition("/")[2].split(".")
    return parts[1].partition("-")[0] if len(parts) > 2 else None


def _one_line(error: BaseException) -> str:
    """Its first sentence."""
    return " ".join(str(error).split()).partition(". ")[0][:200]


def weight_files(folder: Path, stem: str) -> tuple[list[Path], str | None]:
    """The safetensors files of a model, and their variant: full precision, or else "fp16".

    Raises: ValueError when there are none.
    """
    for variant in (None, "fp16"):
        name = stem if variant is None else f"{stem}.{variant}"
        if files := sorted([*folder.glob(f"{name}.safetensors"), *folder.glob(f"{name}-*-of-*")]):
            return files, variant
    raise ValueError(f"{folder / stem}.safetensors: missing; weights load from safetensors only")


def content_hash(folder: Path, stem: str, device: torch.device | str = "cpu") -> str:
    """First 12 hex digits of the sha256 of one file, or of the list of several files' sha256.

    On "meta", where weights are not read, it is "unread".
    """
    if torch.device(device).type == "meta":
        return "unread"
    files, _ = weight_files(folder, stem)
    if len(files) == 1:
        return sha256_file(files[0])[:12]
    return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()[:12]


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """transformers draws one for every model it loads, into a user's terminal."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


def load_pretrained(
    model_class: Any,
    folder: Path,
    stem: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Any:
    """A frozen model in `dtype`, with every weight found in its file.

    On the device "meta" it has the shapes of its configuration and no weights are read.
    Raises: ValueError naming the folder when the file is missing, broken or incomplete.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder / 'config.json'}: missing")
    if torch.device(device).type == "meta":
        return as_loaded(_without_weights(model_class, folder), dtype)
    if not any(folder.glob(f"{stem}*.safetensors")):
        _fetch_weights(folder)
    _, variant = weight_files(folder, stem)
    is_diffusers = model_class.__module__.startswith("diffusers")
    options = {"torch_dtype" if is_diffusers else "dtype": dtype}
    try:
        with without_progress_bar():
            model, info = model_class.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: cannot load {model_class.__name__}: {' '.join(str(error).split())}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def as_loaded(model: Any, dtype: torch.dtype) -> Any:
    """A model that was built, frozen and in the precision that loading it gives its parts."""
    torch.nn.Module.to(model, dtype)
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    if dtype == torch.float16:
        for name, weight in model.named_parameters():
            if any(part in kept for part in name.split(".")):
                weight.data = weight.data.float()
    return model.eval().requires_grad_(False)


def _without_weights(model_class: Any, folder: Path) -> Any:
    config = read_json(folder / "config.json")
    with torch.device("meta"):
        if hasattr(model_class, "from_config"):  # diffusers
            return model_class.from_config(config)
        return model_class(model_class.config_class.from_dict(config))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder / 'tokenizer_config.json'}: missing; a tokenizer is needed")
    is_pieces = any(folder.glob("*.model")) and not (folder / "tokenizer.json").is_file()
    if is_pieces and None in map(find_spec, ("sentencepiece", "google.protobuf")):
        raise ValueError(f"{folder}: a SentencePiece model needs scaledreamer[t5]; install it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: cannot load the tokenizer: {_one_line(error)}") from error
