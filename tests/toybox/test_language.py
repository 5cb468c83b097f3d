"""What people write, read as ToyBox's captions."""

from __future__ import annotations

import random
import re

import pytest

from scaledreamer.toybox.world import grammar, language

READINGS = {
    "a crimson cup with white handle": "a red mug with a white handle",
    "red mugs": "a red mug",
    "purple bunnies": "a purple rabbit",
    "some reddish boxes": "a red box",
    "pink fish with blue fin": "a pink fish with blue fins",
    "The mug is red.": "a red mug",
    "a mug in red with a white handle": "a red mug with a white handle",
    "a green cat sitting on a teal crate": "a green cat on top of a turquoise box",
    "a blue box under a red cat": "a red cat on top of a blue box",
    "a purple bunny and a gold robot": "a purple rabbit next to a yellow robot",
    "a blue duck with an orange hat": "a blue duck wearing an orange hat",
    "a red dog with blue ears and a white hat": "a red dog with blue ears wearing a white hat",
    "a DSLR photo of a pink couch with white cushions": "a pink sofa with white cushions",
    "an orange car with a black wheel": "an orange car with black wheels",
    "a cat, black, next to a dog, white": "a black cat next to a white dog",
    "a silver lighthouse with red bands beside a blue ship": (
        "a grey lighthouse with red stripes next to a blue boat"
    ),
    "a pink airplane from behind": "a pink airplane, back view",
    "a crimson-coloured tortoise": "a red turtle",
    "a duck with red wings and a blue hat on top of a purple box": (
        "a yellow duck with red wings wearing a blue hat on top of a purple box"
    ),
    "a red cat with white paws and a black hat next to a red house": (
        "a red house next to a red cat with white paws wearing a black hat"
    ),
    "a red cat without a hat": "a red cat",
    "a red cat with no blue hat on a yellow box": "a red cat on top of a yellow box",
    "a light blue car": "a blue car",
}


_SECOND_EDITION = frozenset(
    ("rabbit", "turquoise", "grey", "lighthouse", "stripes", "sofa", "dog", "turtle", "airplane")
)


@pytest.mark.parametrize(("written", "caption"), READINGS.items())
def test_free_wording_is_read_as_a_caption(written: str, caption: str):
    kinds = {*grammar.COLOURS, *grammar.KIND_NAMES, *grammar.PARTS.values()}
    if any(word in _SECOND_EDITION - kinds for word in caption.replace(",", "").split()):
        pytest.skip("words of the second edition")
    reading = language.read(written)
    assert (reading.caption, dict(reading.unknown)) == (caption, {})
    assert reading.scene == grammar.parse(caption.partition(",")[0])


def test_captions_stay_as_they_are():
    rng = random.Random(0)
    for split in grammar.SPLITS:
        for prompt in rng.sample(grammar.prompts(split), 200):
            assert language.read(prompt).caption == prompt
            assert language.scene_of(prompt) == grammar.parse(prompt)


def test_another_wording_is_told():
    assert language.caption_of("a red mug") == "a red mug"
    with pytest.warns(UserWarning, match="'a crimson cup' was read as 'a red mug'"):
        assert language.caption_of("a crimson cup") == "a red mug"


def test_every_synonym_means_its_word_and_nothing_else():
    forms = [form for forms in language.SYNONYMS.values() for form in forms]
    assert len(set(forms)) == len(forms)
    known = {*grammar.COLOURS, *grammar.KIND_NAMES, *grammar.PARTS.values(), "hat"}
    assert set(language.SYNONYMS) <= known
    assert not set(forms) & known
    assert set(language.NATURAL_COLOURS) == set(grammar.KIND_NAMES)
    for kind in grammar.KIND_NAMES:
        for form in language.SYNONYMS.get(kind, ()):
            assert language.read(f"a red {form}").caption == f"a red {kind}", form
            assert language.read(f"a red {form} next to a blue box").scene is not None, form


def test_a_kind_without_a_colour_takes_its_natural_one():
    reading = language.read("a snowman next to a tree")
    assert reading.caption == "a green tree next to a white snowman"
    assert set(reading.assumed) == {"white snowman", "green tree"}
    assert language.read("a car with red wheels").caption == "a white car with red wheels"


def test_unknown_words_are_named_with_suggestions():
    reading = language.read("a red mugg on top of a wizard")
    assert reading.caption == "a red mugg on top of a wizard"
    assert dict(reading.unknown) == {"mugg": "mug", "wizard": None}
    assert reading.scene is None
    with pytest.raises(ValueError, match=r"'mugg' \(did you mean 'mug'\?\)"):
        language.scene_of("a red mugg")


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("a red cat on top of a blue tree", "unknown support 'tree'"),
        ("a red mug with a white roof", "a mug has no 'roof'; its named part is 'handle'"),
        ("a red mug and a blue box and a cat", "more than two objects"),
        ("red", "belongs to nothing"),
        ("a red and white cat", "two colours, red and white"),
        ("a red blue cat", "two colours, red and blue"),
        ("a red cat with blue", "the colour blue belongs to nothing"),
        ("", "got no object"),
    ],
)
def test_what_is_no_scene_says_why(written: str, problem: str):
    assert problem in language.read(written).problem
    with pytest.raises(ValueError, match=re.escape(problem)):
        language.scene_of(written)
