"""What people write, turned into the captions that ToyBox knows.

Synonyms ("cup", "crimson"), plurals, missing or other articles, colours behind their noun ("a mug
in red"), other words for a relation ("a cat sitting on a box", "a box under a cat").
"""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import zip_longest

from scaledreamer.storage import normalise_text
from scaledreamer.toybox.world import grammar
from scaledreamer.toybox.world.grammar import Item, Scene

_TABLE = json.loads(
    resources.files("scaledreamer.toybox.world").joinpath("synonyms.json").read_text()
)
_KINDS = frozenset(grammar.KIND_NAMES)
_NAMES = _KINDS | {*grammar.PARTS.values(), "hat"}
_WORDS = _NAMES | {*grammar.COLOURS}
SYNONYMS: dict[str, list[str]] = {w: f for w, f in _TABLE["words"].items() if w in _WORDS}
NATURAL_COLOURS: dict[str, str] = {
    kind: colour if colour in grammar.COLOURS else "white"
    for kind, colour in _TABLE["natural_colours"].items()
    if kind in _KINDS
}
"""What a kind is painted in when no colour is named."""
_FILLERS = frozenset(_TABLE["fillers"])
_DENIALS = ("without", "no", "not")
_JOINTS = (*grammar.RELATIONS, "under")


@dataclass(frozen=True)
class Reading:
    """How a text was understood."""

    caption: str
    """In ToyBox's own words; the text itself where no objects were made out."""
    scene: Scene | None
    """None when it is no scene of ToyBox; `problem` says why."""
    unknown: Mapping[str, str | None]
    """Words without a meaning here, each with the nearest known word."""
    assumed: Sequence[str] = ()
    """Colours that were taken because none was named, as "brown chair"."""
    problem: str = ""


def read(text: str) -> Reading:
    """Never raises: what is not understood is named."""
    plain = normalise_text(text).lower()
    try:
        scene = grammar.parse(plain)
        return Reading(grammar.describe(scene), scene, {})
    except ValueError:
        words = _words(plain)
    view = next((word for word in words if word in grammar.VIEW_WORDS), None)
    words = [word for word in words if word not in grammar.VIEW_WORDS]
    unknown = {word: _nearest(word) for word in words if not _is_known(word)}
    kept = [word for word in words if _is_known(word)]
    ending = f", {view}" if view else ""
    assumed: list[str] = []
    try:
        caption = grammar.describe(_scene(kept, assumed))
    except ValueError as error:
        return Reading(normalise_text(text), None, unknown, problem=f"{text!r}: {error}")
    scene, problem = None, ""
    try:
        scene = grammar.parse(caption)
    except ValueError as error:
        problem = str(error)
    return Reading(caption + ending, scene, unknown, tuple(assumed), problem)


def scene_of(text: str) -> Scene:
    """The scene of a freely worded prompt.

    Raises: ValueError naming the unknown words with suggestions, or what is missing.
    """
    reading = read(text)
    if reading.unknown:
        raise ValueError(f"{text!r}: {explain(reading.unknown)}")
    if reading.scene is None:
        raise ValueError(reading.problem)
    return reading.scene


def caption_of(text: str) -> str:
    """The caption that `scene_of` finds; warns where it is not the text. Raises as that does."""
    caption = grammar.describe(scene_of(text))
    if caption != normalise_text(text).lower():
        warnings.warn(f"{text!r} was read as {caption!r}", stacklevel=2)
    return caption


def explain(unknown: Mapping[str, str | None]) -> str:
    """One line: unknown words, each with what it may stand for."""
    named = [
        f"{word!r}" + (f" (did you mean {near!r}?)" if near else "")
        for word, near in unknown.items()
    ]
    return "unknown to the text encoder: " + ", ".join(named)


def _plural(word: str) -> str:
    if word.endswith("y") and word[-2] not in "aeou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


@cache
def _phrases() -> tuple[re.Pattern[str], dict[str, str]]:
    """Every written form, longest first, and what it means."""
    parts = grammar.PARTS.values()
    meaning = {part.removesuffix("s"): part for part in parts}
    meaning |= {form: form for form in (*_JOINTS, *grammar.VIEW_WORDS, *parts)}
    for word, forms in SYNONYMS.items():
        meaning |= dict.fromkeys(forms, word)
        meaning |= {_plural(form): word for form in forms}
    meaning |= {_plural(kind): kind for kind in grammar.KIND_NAMES}
    meaning |= {form: word for word, forms in _TABLE["phrases"].items() for form in forms}
    forms = sorted(meaning, key=len, reverse=True)
    return re.compile(rf"\b({'|'.join(map(re.escape, forms))})\b"), meaning


def _words(text: str) -> list[str]:
    """Known words and phrases in ToyBox's spelling, unknown ones as they stand; no fillers."""
    pattern, meaning = _phrases()
    marked = pattern.sub(lambda match: meaning[match[1]].replace(" ", "_"), text)
    words = [_colour(word.replace("_", " ")) for word in re.findall(r"[\w'-]+", marked)]
    return _without_denied([word for word in words if word not in _FILLERS])


def _without_denied(words: Sequence[str]) -> list[str]:
    """Drops "without a red hat" and "no hat", up to the noun."""
    kept, is_denied = [], False
    for word in words:
        if word in _DENIALS:
            is_denied = True
            kept = kept[:-1] if kept and kept[-1] == "with" else kept
        elif not is_denied:
            kept.append(word)
        elif word in _NAMES:
            is_denied = False
    return kept


def _colour(word: str) -> str:
    """ "red" for "reddish" and "red-coloured"; other words as they are."""
    ends = ("ish", "dish", "-coloured", "-colored")
    for stem in (word.removesuffix(end) for end in ends):
        if stem in grammar.COLOURS:
            return stem
    return word


def _is_known(word: str) -> bool:
    return word in _WORDS or word in (*_JOINTS, "with", "wearing")


def _nearest(word: str) -> str | None:
    _, meaning = _phrases()
    known = [*sorted(_WORDS), *(form for form in meaning if " " not in form)]
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return near[0] if near else None


def _scene(words: Sequence[str], assumed: list[str]) -> Scene:
    places = [index for index, word in enumerate(words) if word in _JOINTS]
    ends = [*places[1:], len(words)]
    places = [
        place
        for place, end in zip(places, ends, strict=False)
        if words[place] != "next to"  # "and a white hat", "red and white" join no objects
        or (_KINDS & set(words[:place]) and _KINDS & set(words[place:end]))
    ]
    if not places:
        return Scene(_item(words, assumed))
    if len(places) > 1:
        raise ValueError("more than two objects; name one or two")
    relation = words[places[0]]
    first, second = (_item(w, assumed) for w in (words[: places[0]], words[places[0] + 1 :]))
    if relation == "under":
        first, second, relation = second, first, "on top of"
    return grammar.canonical(Scene(first, relation, second))


def _coloured_nouns(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Nouns, each with the colour before it, or else the one behind it ("a mug in red")."""
    nouns: list[tuple[str, str | None]] = []
    colour, is_open = None, False
    for word, following in zip_longest(words, words[1:]):
        if word in grammar.COLOURS:
            if is_open and nouns[-1][1] is None and following not in _NAMES:
                nouns[-1] = (nouns[-1][0], word)
            elif colour is not None:
                raise ValueError(f"got two colours, {colour} and {word}, for one thing; name one")
            else:
                colour = word
        elif word in _NAMES:
            nouns.append((word, colour))
            colour, is_open = None, True
        else:
            is_open = False
    if colour is not None:
        raise ValueError(f"the colour {colour} belongs to nothing; write it before its noun")
    return nouns


def _item(words: Sequence[str], assumed: list[str]) -> Item:
    """An object with its part and hat; a kind without a colour gets its natural one."""
    nouns = _coloured_nouns(words)
    kinds = [(name, shade) for name, shade in nouns if name in grammar.KIND_NAMES]
    if len(kinds) != 1:
        known = ", ".join(grammar.KIND_NAMES)
        got = " and ".join(name for name, _ in kinds) or "no object"
        raise ValueError(f"got {got} where one object should stand; the objects are {known}")
    kind, shade = kinds[0]
    if shade is None:
        named = {colour for _, colour in nouns}
        natural = NATURAL_COLOURS[kind]
        shade = next(colour for colour in (natural, "white", "black", "red") if colour not in named)
        assumed.append(f"{shade} {kind}")
    slots: dict[str, str] = {}
    for name, colour in nouns:
        if name == kind:
            continue
        part = grammar.PARTS[kind]
        if name != "hat" and name.removesuffix("s") != part.removesuffix("s"):
            raise ValueError(f"a {kind} has no {name!r}; its named part is {part!r}")
        slots["hat" if name == "hat" else "accent"] = colour or shade
    if slots.get("accent") == shade:
        del slots["accent"]
    return Item(kind, shade, **slots)
