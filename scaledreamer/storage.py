"""Files that are whole or absent, safe tensor files, hashes, and the identity of a prompt."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

T = TypeVar("T")

FORMAT = 1
"""Version of checkpoint and generator folders, in their config.json and manifest.json."""

_CHECKPOINT = re.compile(r"step_\d{8,}")
_WEIGHTS = Path(__file__).parent / "toybox" / "weights"
_PREFIX = "toybox:"


@contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file handle whose content replaces `path` on success and vanishes on an error.

    Raises: ValueError when the file can't be made there.
    """
    target = Path(path)
    temporary = _beside(target)
    if target.is_dir():
        raise ValueError(f"cannot write {target}: it is a folder; give a file name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = temporary.open(mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` on success and vanishes on an error.

    A folder already at `path` is replaced: it is moved aside before and deleted after.
    Raises: ValueError when the folder can't be made there.
    """
    target = Path(path)
    temporary, former = _beside(target), _beside(target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"cannot write folder {target}: it is a file; choose another path")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield temporary
        for entry in sorted(temporary.rglob("*"), reverse=True):
            _sync(entry)
        _sync(temporary)
        if target.exists():
            target.rename(former)
        temporary.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.exists() and not target.exists():
            former.rename(target)
        shutil.rmtree(former, ignore_errors=True)


def _unwritable(path: Path, error: OSError) -> ValueError:
    reason = f"{error.strerror} ({error.filename})"
    return ValueError(f"cannot write {path}: {reason}; choose another path")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    with atomic_write(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False)
        handle.write("\n")


def read_json(path: str | Path) -> Any:
    """Raises: ValueError naming the file when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"cannot read {path}: not valid JSON ({error})") from error


def sha256_file(path: str | Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically; tensors that share memory are stored apart."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if address in seen else plain
        seen.add(address)
    content = safetensors.torch.save(stored, dict(metadata) if metadata else None)
    with atomic_write(path, "wb") as handle:
        handle.write(content)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a safetensors file to the CPU.

    Raises: ValueError naming the file when it is missing or corrupt.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        reason = error.strerror or "no such file"
        raise ValueError(f"cannot read weights {path}: {reason}") from error
    except SafetensorError as error:
        raise ValueError(f"cannot read weights {path}: corrupt file ({error})") from error


def resolve_folder(spec: str) -> Path:
    """The folder a user named: `toybox:prior` lies in this package, anything else is a path.

    Raises: ValueError when there is no such folder.
    """
    if spec.startswith(_PREFIX):
        name = spec.removeprefix(_PREFIX)
        shipped = sorted(one.name for one in _WEIGHTS.glob("*") if one.is_dir())
        if name not in shipped:
            raise ValueError(f"got folder {spec!r}; shipped are: {', '.join(shipped) or 'none'}")
        return _WEIGHTS / name
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise ValueError(f"got folder {spec!r}; no such folder; give a path or {_PREFIX}NAME")
    return folder


def read_manifest(folder: Path) -> dict[str, str]:
    """File name -> sha256, as the folder's manifest.json lists them.

    Raises: ValueError when there is none, or it is malformed or of another format.
    """
    if not (folder / "manifest.json").is_file():
        raise ValueError(f"checkpoint {folder}: no manifest.json; name a complete checkpoint")
    manifest = read_json(folder / "manifest.json")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(one, str) for one in files.values()):
        raise ValueError(
            f"checkpoint {folder}: manifest.json does not list files; use another checkpoint"
        )
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint {folder}: manifest.json is of format {manifest.get('format')!r}; this "
            f"version reads {FORMAT}"
        )
    return files


def verify_files(folder: Path, names: Iterable[str]) -> None:
    """Raises ValueError unless the manifest lists each file and its hash agrees."""
    files = read_manifest(folder)
    for name in names:
        if name not in files:
            problem = f"manifest.json does not list {name}"
        elif not (folder / name).is_file():
            problem = f"{name} is missing"
        elif sha256_file(folder / name) != files[name]:
            problem = f"{name} is damaged"
        else:
            continue
        raise ValueError(f"checkpoint {folder}: {problem}; use another checkpoint")


def newest_checkpoint(run_folder: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a run's newest checkpoint; None when the run has no readable one.

    Where `read` raises ValueError it warns and goes on with the checkpoint before.
    """
    for folder in checkpoint_folders(run_folder):
        try:
            return read(folder)
        except ValueError as error:
            warnings.warn(f"{error}; trying the one before", stacklevel=3)
    return None


def checkpoint_folders(run_folder: Path) -> list[Path]:
    """Newest first: the one `latest` names, those of fewer steps, then a left branch's later ones.

    Going back to an older checkpoint leaves folders of more steps behind; they are the oldest news.
    """
    root = run_folder / "checkpoints"
    if not root.is_dir():
        return []
    found = (path for path in root.iterdir() if path.is_dir())
    steps = {path: int(path.name[5:]) for path in found if _CHECKPOINT.fullmatch(path.name)}
    pointer = root / "latest"
    latest = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    top = int(latest[5:]) if _CHECKPOINT.fullmatch(latest) else max(steps.values(), default=0)
    return sorted(steps, key=lambda path: (steps[path] <= top, steps[path]), reverse=True)


def cache_folder(name: str) -> Path:
    """Where long work keeps what it can go on from: `$XDG_CACHE_HOME/scaledreamer/NAME`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "scaledreamer" / name


def normalise_text(text: str) -> str:
    """NFC form with every run of white space as one blank."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_id(text: str) -> str:
    """128-bit blake2b of the normalised text, as 32 hexadecimal digits."""
    return hashlib.blake2b(normalise_text(text).encode(), digest_size=16).hexdigest()


def file_stem(text: str) -> str:
    """A file name for a prompt, without suffix: a short slug and 8 digits of its id."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "_", ascii_text)[:40].strip("_")
    return f"{slug or 'prompt'}_{prompt_id(text)[:8]}"
