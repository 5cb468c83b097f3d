"""Prompts and scenes, both ways; splits by construction."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scaledreamer.toybox.world import grammar
from scaledreamer.toybox.world.grammar import Item, Scene


def _corpus() -> list[str]:
    return [prompt for split in grammar.SPLITS for prompt in grammar.prompts(split)]


def test_the_world_is_as_large_as_it_says():
    kinds, colours = {"1": (18, 10), "2": (36, 12)}[grammar.EDITION]
    assert (len(grammar.KIND_NAMES), len(grammar.COLOURS)) == (kinds, colours)
    assert set(grammar.FRONTED) < set(grammar.KIND_NAMES)


@pytest.mark.multi
@pytest.mark.skipif(grammar.EDITION != "1", reason="started by the first edition's tests")
def test_the_second_edition_passes_the_same_tests():
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("grammar", "language")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = {**os.environ, "SCALEDREAMER_TOYBOX_EDITION": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_an_unknown_edition_is_named():
    with pytest.raises(ValueError, match="SCALEDREAMER_TOYBOX_EDITION: got '3'"):
        grammar._read_vocabulary("3")


def test_every_prompt_survives_the_way_to_a_scene_and_back():
    corpus = _corpus()
    assert len(set(corpus)) == len(corpus) > {"1": 10_000, "2": 100_000}[grammar.EDITION]
    assert all(grammar.describe(grammar.parse(prompt)) == prompt for prompt in corpus)


def test_splits_are_disjoint_and_hold_out_what_they_say():
    splits = {split: set(grammar.prompts(split)) for split in grammar.SPLITS}
    for first, second in itertools.combinations(splits.values(), 2):
        assert not first & second
    train = [grammar.parse(prompt) for prompt in splits["train"]]
    seen_pairs = {(item.kind, item.colour) for scene in train for item in scene.items}
    assert not seen_pairs & grammar.held_out_pairs()
    held = [grammar.parse(prompt) for prompt in splits["unseen_pairing"]]
    assert all(
        any((item.kind, item.colour) in grammar.held_out_pairs() for item in scene.items)
        for scene in held
    )
    trained_words = {word for prompt in splits["train"] for word in prompt.split()}
    unseen_words = {word for prompt in splits["unseen_combination"] for word in prompt.split()}
    assert unseen_words <= trained_words
    assert 0.05 < len(splits["unseen_combination"]) / len(splits["train"]) < 0.2


def test_next_to_is_one_scene_in_both_orders():
    first = grammar.parse("a red mug next to a blue house")
    assert first == grammar.parse("a blue house next to a red mug")
    assert grammar.split_of("a blue house next to a red mug") == grammar.split_of(
        "a red mug next to a blue house"
    )


def test_hard_swaps_are_distinct_and_start_with_the_exchange():
    for prompt in _corpus()[::397]:
        swaps = grammar.hard_swaps(prompt)
        assert len(set(swaps)) == 10
        assert prompt not in swaps
        assert swaps == grammar.hard_swaps(prompt)
    scene = "a yellow duck wearing a blue hat"
    assert grammar.hard_swaps(scene)[0] == "a blue duck wearing a yellow hat"
    dressed = grammar.hard_swaps("a yellow duck with red wings wearing a blue hat")
    assert dressed[:3] == [
        "a red duck with yellow wings wearing a blue hat",
        "a blue duck with red wings wearing a yellow hat",
        "a yellow duck with blue wings wearing a red hat",
    ]
    stacked = grammar.hard_swaps("a green cactus on top of a purple box")
    assert stacked[:3] == [
        "a purple cactus on top of a green box",
        "a purple box on top of a green cactus",
        "a green box on top of a purple cactus",
    ]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a rde mug", "did you mean 'red'"),
        ("a red mugg", "did you mean 'mug'"),
        ("a red mug with a white roof", "its named part is 'handle'"),
        ("a red mug wearing a blue hat", "wearer of a hat"),
        ("a red mug on top of a blue tree", "unknown support"),
        ("mug", "not a ToyBox caption"),
    ],
)
def test_bad_prompts_name_the_word(prompt: str, message: str):
    with pytest.raises(ValueError, match=message):
        grammar.parse(prompt)


def test_articles_and_plurals():
    assert grammar.describe(Scene(Item("car", "orange", accent="black"))) == (
        "an orange car with black wheels"
    )
    assert grammar.parse(" An  orange car WITH black wheels. ") == Scene(
        Item("car", "orange", accent="black")
    )


def test_neighbours_turned_round_are_the_same_scene():
    prompt = "a red house next to a green tree"
    assert grammar.turned_round(prompt) == "a green tree next to a red house"
    assert grammar.parse(grammar.turned_round(prompt)) == grammar.parse(prompt)
    assert grammar.turned_round("a red mug") == "a red mug"


def test_the_quickstart_asks_for_trained_prompts():
    path = Path(__file__).parents[2] / "data" / "prompts" / "quickstart.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) >= 6
    assert set(lines) <= set(grammar.prompts("train"))


def test_the_balanced_corpus_is_training_prompts_with_fewer_neighbours():
    prompts = grammar.balanced_prompts()
    train = set(grammar.prompts("train"))
    assert set(prompts) < train
    neighbours = [prompt for prompt in prompts if " next to " in prompt]
    assert len(train) - len(prompts) == sum(" next to " in p for p in train) - len(neighbours)
    assert 0.1 < len(neighbours) / len(prompts) < 0.4
