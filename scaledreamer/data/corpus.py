"""Prompt corpora: the embedded splits and text or JSON files."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from scaledreamer.storage import normalise_text
from scaledreamer.toybox.world import grammar

logger = logging.getLogger(__name__)

_SINGLE, _BALANCED = "prompt:", "balanced"


def load_prompts(spec: str) -> list[str]:
    """Distinct prompts of a corpus, in its own order, with whitespace and Unicode normalised.

    `spec` is one of
    - "toybox:train", "toybox:unseen_combination", "toybox:unseen_pairing"; "toybox:balanced" is
      the first with fewer of the scenes of two neighbours;
    - "prompt:TEXT": that one prompt, as "prompt:a red mug with a white handle";
    - a .txt file: one prompt a line; blank lines and lines that start with # are left out;
    - a .json file: a list of strings, or a mapping of names to such lists, then with the name
      behind a #: "prompts.json#train".

    Repeated prompts are removed; their number is logged.
    Raises: ValueError for an unknown split, a missing or malformed file, or an empty corpus.
    """
    source, _, key = spec.partition("#")
    if spec.startswith(_SINGLE):
        texts = [_single(spec)]
    elif source.startswith("toybox:"):
        texts = _read_toybox(source.removeprefix("toybox:"))
    elif source.endswith(".txt"):
        texts = prompt_lines(_read_text(Path(source)))
    elif source.endswith(".json"):
        texts = _read_json(Path(source), key)
    else:
        raise ValueError(
            f"prompts: got {spec!r}; expected toybox:<split>, a .txt file, a .json file or "
            "prompt:<text>"
        )
    return _distinct(texts, spec)


def prompt_lines(text: str) -> list[str]:
    """The prompts of a text, one a line, with whitespace and Unicode normalised.

    Blank lines and lines that start with # are left out; repeats stay.
    """
    lines = map(normalise_text, text.removeprefix("\ufeff").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _single(spec: str) -> str:
    text = normalise_text(spec.removeprefix(_SINGLE))
    if not text:
        raise ValueError(f"prompts: got {spec!r}; expected some words behind {_SINGLE}")
    return text


def _read_toybox(split: str) -> Sequence[str]:
    if split == _BALANCED:
        return grammar.balanced_prompts()
    if split not in grammar.SPLITS:
        known = ", ".join((*grammar.SPLITS, _BALANCED))
        raise ValueError(f"prompts: got toybox:{split}; there are {known}")
    return grammar.prompts(split)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"prompts: got {path}, which is no file; name an existing corpus")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts: {path} is not UTF-8 ({error}); save it as UTF-8") from error


def _read_json(path: Path, key: str) -> Sequence[str]:
    try:
        values: Any = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"prompts: {path} is not JSON ({error}); correct it") from error
    if isinstance(values, dict):
        lists = cast(dict[str, Any], values)
        if key not in lists:
            names = ", ".join(f"{path}#{name}" for name in lists)
            raise ValueError(f"prompts: got {path}#{key}; the file holds {names}")
        values = lists[key]
    elif key:
        raise ValueError(f"prompts: got {path}#{key}, but the file is one list; leave out #{key}")
    texts = cast(list[Any], values)
    if not isinstance(values, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts: {path} must hold a list of strings, or name such a list by #")
    return texts


def _distinct(texts: Sequence[str], spec: str) -> list[str]:
    kept = [text for text in map(normalise_text, texts) if text]
    unique = dict.fromkeys(kept)
    if not unique:
        raise ValueError(f"prompts: {spec} holds no prompt; expected at least one")
    if len(unique) < len(kept):
        logger.warning("%s: removed %d repeated prompts", spec, len(kept) - len(unique))
    return list(unique)
