"""Captions of ToyBox: prompt <-> scene both ways, the corpus and its splits.

Forms: "a red mug", "a red mug with a white handle" (plural parts without article), "a yellow duck
wearing a blue hat" (with or without a part), "a green cactus on top of a purple box" (also "next
to"). An unnamed second colour equals the first. "A next to B" and "B next to A" are one scene.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from scaledreamer.storage import normalise_text, prompt_id

EDITIONS = ("1", "2")
EDITION = os.environ.get("SCALEDREAMER_TOYBOX_EDITION", "1")
"""1: 18 kinds and 10 colours, which the models in the package know. 2: 36 and 12, in training."""


def _read_vocabulary(edition: str) -> dict[str, Any]:
    if edition not in EDITIONS:
        raise ValueError(f"SCALEDREAMER_TOYBOX_EDITION: got {edition!r}; one of {EDITIONS}")
    folder = resources.files("scaledreamer.toybox.world")
    return json.loads(folder.joinpath(f"vocabulary_{edition}.json").read_text())


_VOCABULARY = _read_vocabulary(EDITION)
PALETTE: dict[str, tuple[float, float, float]] = {
    name: (rgb[0], rgb[1], rgb[2]) for name, rgb in _VOCABULARY["colours"].items()
}
COLOURS = tuple(PALETTE)
PARTS: dict[str, str] = _VOCABULARY["parts"]
KIND_NAMES = tuple(PARTS)
WEARERS: tuple[str, ...] = tuple(_VOCABULARY["wearers"])
FRONTED: tuple[str, ...] = tuple(_VOCABULARY["fronted"])
"""Kinds whose front differs from their back by more than a mirror image."""
SUPPORTS: tuple[str, ...] = tuple(_VOCABULARY["supports"])
RELATIONS: tuple[str, ...] = tuple(_VOCABULARY["relations"])
VIEW_WORDS: tuple[str, ...] = tuple(_VOCABULARY["view_words"])
SPLITS = ("train", "unseen_combination", "unseen_pairing")


@dataclass(frozen=True)
class Item:
    """One object: its kind, its colour, and those of its named part and its hat, if any."""

    kind: str
    colour: str
    accent: str | None = None
    hat: str | None = None


@dataclass(frozen=True)
class Scene:
    """One object, or two in a relation (`item` relation `other`)."""

    item: Item
    relation: str | None = None
    other: Item | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        return (self.item,) if self.other is None else (self.item, self.other)


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _describe_item(item: Item) -> str:
    text = f"{_article(item.colour)} {item.kind}"
    if item.accent is not None:
        part = PARTS[item.kind]
        coloured = item.accent if part.endswith("s") else _article(item.accent)
        text += f" with {coloured} {part}"
    if item.hat is not None:
        text += f" wearing {_article(item.hat)} hat"
    return text


def describe(scene: Scene) -> str:
    """The scene's prompt."""
    if scene.other is None:
        return _describe_item(scene.item)
    return f"{_describe_item(scene.item)} {scene.relation} {_describe_item(scene.other)}"


def _known(word: str, words: tuple[str, ...], what: str, prompt: str) -> str:
    if word in words:
        return word
    near = difflib.get_close_matches(word, words, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(words)}"
    raise ValueError(f"{prompt!r}: unknown {what} {word!r}{hint}")


_ITEM = re.compile(
    r"an? (?P<colour>\w+) (?P<kind>\w+)"
    r"(?: with (?:an? )?(?P<accent>\w+) (?P<part>\w+))?"
    r"(?: wearing an? (?P<hat>\w+) hat)?"
)


def _parse_item(text: str, prompt: str) -> Item:
    match = _ITEM.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{prompt!r}: not a ToyBox caption; write e.g. 'a red mug with a white handle'"
        )
    kind = _known(match["kind"], KIND_NAMES, "object", prompt)
    colour = _known(match["colour"], COLOURS, "colour", prompt)
    if match["part"] is not None and match["part"] != PARTS[kind]:
        raise ValueError(
            f"{prompt!r}: a {kind} has no {match['part']!r}; its named part is {PARTS[kind]!r}"
        )
    if match["hat"] is not None:
        _known(kind, WEARERS, "wearer of a hat", prompt)
    accent, hat = (
        None if match[name] is None else _known(match[name], COLOURS, "colour", prompt)
        for name in ("accent", "hat")
    )
    return Item(kind, colour, accent, hat)


def parse(prompt: str) -> Scene:
    """The scene a ToyBox prompt describes.

    Raises: ValueError naming the word that is unknown, or the form.
    """
    text = normalise_text(prompt).lower().rstrip(".")
    for relation in RELATIONS:
        first, found, second = text.partition(f" {relation} ")
        if found:
            other = _parse_item(second, prompt)
            if relation == "on top of":
                _known(other.kind, SUPPORTS, "support", prompt)
            return canonical(Scene(_parse_item(first, prompt), relation, other))
    return Scene(_parse_item(text, prompt))


def canonical(scene: Scene) -> Scene:
    """Order the two items of "next to" as the vocabulary orders their kinds."""
    if scene.relation != "next to" or scene.other is None:
        return scene
    rank = [(KIND_NAMES.index(item.kind), COLOURS.index(item.colour)) for item in scene.items]
    return scene if rank[0] <= rank[1] else replace(scene, item=scene.other, other=scene.item)


def turned_round(prompt: str) -> str:
    """The same scene named from its other object, for "next to"; other prompts as they are."""
    first, found, second = prompt.partition(" next to ")
    return f"{second} next to {first}" if found else prompt


def _all_scenes() -> Iterator[Scene]:
    pairs = list(itertools.permutations(COLOURS, 2))
    triples = list(itertools.permutations(COLOURS, 3))
    for kind in KIND_NAMES:
        yield from (Scene(Item(kind, colour)) for colour in COLOURS)
        yield from (Scene(Item(kind, first, accent=second)) for first, second in pairs)
    for kind in WEARERS:
        yield from (Scene(Item(kind, first, hat=second)) for first, second in pairs)
        if _VOCABULARY["has_dressed_parts"]:
            yield from (Scene(Item(kind, a, b, hat=c)) for a, b, c in triples)
    for i, kind in enumerate(KIND_NAMES):
        for support in SUPPORTS:
            if support != kind:
                for first, second in pairs:
                    yield Scene(Item(kind, first), "on top of", Item(support, second))
        for j in range(i + 1, len(KIND_NAMES)):
            if (i + j) % _VOCABULARY["neighbour_stride"] == 0:
                for first, second in pairs:
                    yield Scene(Item(kind, first), "next to", Item(KIND_NAMES[j], second))


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Object-colour pairs that never occur in training, each kind at most once."""

    def order(pair: tuple[str, str]) -> bytes:
        return hashlib.blake2b(" ".join(pair).encode(), digest_size=8).digest()

    best = [min(((kind, colour) for colour in COLOURS), key=order) for kind in KIND_NAMES]
    return frozenset(sorted(best, key=order)[: _VOCABULARY["held_out_pairs"]])


def split_of(prompt: str) -> str:
    """Which of `SPLITS` the prompt belongs to, from its words and its id alone."""
    scene = parse(prompt)
    return _split(scene, describe(scene))


def _split(scene: Scene, caption: str) -> str:
    if any((item.kind, item.colour) in held_out_pairs() for item in scene.items):
        return "unseen_pairing"
    is_plain = form_of(scene) == "plain"
    share = int(prompt_id(caption), 16) % 100
    if not is_plain and share < _VOCABULARY["held_out_combinations_percent"]:
        return "unseen_combination"
    return "train"


@cache
def _corpus() -> dict[str, tuple[str, ...]]:
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for scene in _all_scenes():
        prompt = describe(scene)
        splits[_split(scene, prompt)].append(prompt)
    return {split: tuple(texts) for split, texts in splits.items()}


def prompts(split: str) -> list[str]:
    """The whole split, in a fixed order."""
    return list(_corpus()[_known(split, SPLITS, "split", split)])


def balanced_prompts() -> list[str]:
    """The train split with a quarter of its neighbours, which are seven tenths of it otherwise."""

    def is_kept(prompt: str) -> bool:
        return " next to " not in prompt or int(prompt_id(prompt), 16) // 100 % 4 == 0

    return [prompt for prompt in prompts("train") if is_kept(prompt)]


def form_of(scene: Scene) -> str:
    """Which of the caption forms the scene has."""
    if scene.relation is not None:
        return scene.relation
    if scene.item.hat is not None:
        return "wearing"
    return "plain" if scene.item.accent is None else "with"


def exchanged(scene: Scene) -> list[str]:
    """Prompts with the same words and another meaning: colours exchanged, relation reversed."""
    item, other = scene.item, scene.other
    if other is not None:
        swapped = Scene(
            replace(item, colour=other.colour), scene.relation, replace(other, colour=item.colour)
        )
        out = [describe(swapped)]
        if scene.relation == "on top of":
            out += [describe(Scene(other, scene.relation, item))]
            out += [describe(Scene(swapped.items[1], scene.relation, swapped.item))]
        return out
    swaps = []
    if item.accent is not None:
        swaps.append(replace(item, colour=item.accent, accent=item.colour))
    if item.hat is not None:
        swaps.append(replace(item, colour=item.hat, hat=item.colour))
    if item.accent is not None and item.hat is not None:
        swaps.append(replace(item, accent=item.hat, hat=item.accent))
    return [describe(Scene(swap)) for swap in swaps]


def hard_swaps(prompt: str, count: int = 10) -> list[str]:
    """Near misses of a prompt: `exchanged` first, then prompts that differ in one word."""
    scene = parse(prompt)
    rng = random.Random(prompt_id(prompt))
    out = exchanged(scene)
    while len(out) < count:
        candidate = describe(_one_word_off(scene, rng))
        if candidate not in out and candidate != describe(scene):
            out.append(candidate)
    return out[:count]


def other_kinds(prompt: str, count: int, rng: random.Random) -> list[str]:
    """The prompt with a plain object's kind drawn anew, `count` times; none without such."""
    scene = parse(prompt)
    items = scene.items
    places = [i for i, item in enumerate(items) if item.accent is None and item.hat is None]
    out: list[str] = []
    while places and len(out) < count:
        place = rng.choice(places)
        allowed = SUPPORTS if place == 1 and scene.relation == "on top of" else KIND_NAMES
        changed = replace(items[place], kind=rng.choice(allowed))
        first, second = (changed, scene.other) if place == 0 else (scene.item, changed)
        text = describe(canonical(Scene(first, scene.relation, second)))
        if text != describe(scene) and text not in out:
            out.append(text)
    return out


def _one_word_off(scene: Scene, rng: random.Random) -> Scene:
    """One colour, or the kind of an object without named part and hat, drawn anew."""
    position = rng.randrange(len(scene.items))
    item = scene.items[position]
    slots = [slot for slot in ("colour", "accent", "hat") if getattr(item, slot) is not None]
    coloured = tuple(slots)
    if slots == ["colour"]:
        slots.append("kind")
    slot = rng.choice(slots)
    allowed = COLOURS
    if slot == "kind":
        allowed = SUPPORTS if position == 1 and scene.relation == "on top of" else KIND_NAMES
    changed = replace(item, **{slot: rng.choice(allowed)})
    if len({getattr(changed, one) for one in coloured}) < len(coloured):
        return scene  # two slots of one colour: not a caption of ours
    if scene.other is None:
        return Scene(changed)
    first, second = (changed, scene.other) if position == 0 else (scene.item, changed)
    return canonical(Scene(first, scene.relation, second))
