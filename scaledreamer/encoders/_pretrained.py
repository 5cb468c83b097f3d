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


def locate(spec: str, field: str = "folder") -> Path:
    """The folder of a model that a user named: `toybox:prior`, a path, or a hub id `OWNER/NAME`.

    A hub id may end in `@REVISION`; what is not in the local cache is downloaded: configurations,
    tokenizers and safetensors weights, of each component in one precision.
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
    return _from_hub(match[1], match[2], field)


def _from_hub(repository: str, revision: str | None, field: str) -> Path:
    try:
        files = wanted_files(list_repo_files(repository, revision=revision))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=files))
    except (OSError, HTTPError, HFValidationError) as error:
        problem = _one_line(error)
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (OSError, HFValidationError):
        raise ValueError(
            f"{field}: got {repository!r}; no such folder, nor in the local cache, and the hub "
            f"gave none ({problem}); give a downloaded folder, or check name and network"
        ) from None


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files, those that are read here.

    At most one folder deep; of safetensors weights the full precision, or else "fp16".
    """
    names = [name for name in names if name.count("/") <= 1]
    weights = [name for name in names if name.endswith(".safetensors")]
    taken = [name for name in names if name.endswith(_TEXT_FILES)]
    for folder in sorted({name.rpartition("/")[0] for name in weights}):
        here = [name for name in weights if name.rpartition("/")[0] == folder]
        plain = [name for name in here if _variant(name) is None]
        if not folder:  # single-file checkpoints of the whole pipeline lie at the top
            plain = [name for name in plain if name.startswith("model")]
            here = plain
        taken += plain or [name for name in here if _variant(name) == "fp16"]
    return sorted(taken)


def _variant(name: str) -> str | None:
    """ "fp16" of model.fp16.safetensors or model.fp16-00001-of-00002.safetensors; else None."""
    parts = name.rpartition("/")[2].split(".")
    return parts[1].partition("-")[0] if len(parts) > 2 else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


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
def _without_progress_bar() -> Iterator[None]:
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
        model = _without_weights(model_class, folder)
        return torch.nn.Module.to(model, dtype).eval().requires_grad_(False)
    _, variant = weight_files(folder, stem)
    is_diffusers = model_class.__module__.startswith("diffusers")
    options = {"torch_dtype" if is_diffusers else "dtype": dtype}
    try:
        with _without_progress_bar():
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
    if is_pieces and find_spec("sentencepiece") is None:
        raise ValueError(f"{folder}: a SentencePiece model needs scaledreamer[t5]; install it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: cannot load the tokenizer: {_one_line(error)}") from error
