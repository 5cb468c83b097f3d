from __future__ import annotations

import logging
from pathlib import Path

import pytest

from scaledreamer.data.corpus import load_prompts, prompt_lines
from scaledreamer.toybox.world import grammar


@pytest.mark.parametrize("split", ["train", "unseen_combination", "unseen_pairing"])
def test_toybox_splits_are_the_grammars(split: str) -> None:
    assert load_prompts(f"toybox:{split}") == list(grammar.prompts(split))


def test_text_files_leave_out_comments_blanks_and_repeats(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# a list\n\na  red box\n  a blue ball \na red\tbox\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert load_prompts(str(path)) == ["a red box", "a blue ball"]
    assert "removed 1 repeated prompt" in caplog.text


def test_lines_are_normalised_and_keep_their_repeats() -> None:
    text = (
        "\ufeff# saved by an editor\r\n  # indented\r\na  red box\r\n\t\r\na red box # 2\na red box"
    )
    assert prompt_lines(text) == ["a red box", "a red box # 2", "a red box"]


def test_composed_and_decomposed_letters_are_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a caf\u00e9\na cafe\u0301\n", encoding="utf-8")
    assert load_prompts(str(path)) == ["a caf\u00e9"]


def test_json_lists_and_named_lists(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('["a red box", "a blue ball"]')
    (tmp_path / "named.json").write_text('{"train": ["a red box"], "val": ["a blue ball"]}')
    assert load_prompts(str(tmp_path / "list.json")) == ["a red box", "a blue ball"]
    assert load_prompts(f"{tmp_path / 'named.json'}#val") == ["a blue ball"]


def test_a_prompt_is_a_corpus_of_one() -> None:
    assert load_prompts("prompt: a red  mug #2, toybox:train.txt ") == [
        "a red mug #2, toybox:train.txt"
    ]
    with pytest.raises(ValueError, match="expected some words behind prompt:"):
        load_prompts("prompt: ")


@pytest.mark.parametrize(
    ("name", "content", "key", "message"),
    [
        ("empty.txt", "# nothing\n\n", "", "holds no prompt"),
        ("empty.json", "[]", "", "holds no prompt"),
        ("named.json", '{"train": ["a"]}', "", "the file holds .*#train"),
        ("named.json", '{"train": ["a"]}', "#test", "got .*#test"),
        ("list.json", '["a"]', "#train", "leave out #train"),
        ("broken.json", '["a"', "", "is not JSON"),
        ("numbers.json", "[1, 2]", "", "list of strings"),
        ("latin.txt", b"caf\xe9\n", "", "not UTF-8"),
        ("other.csv", "a\n", "", r"expected toybox:<split>, a \.txt .* or prompt:"),
    ],
)
def test_errors_name_the_file_and_the_remedy(
    tmp_path: Path, name: str, content: str | bytes, key: str, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        load_prompts(f"{path}{key}")


def test_missing_file_and_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        load_prompts(str(tmp_path / "missing.txt"))
    with pytest.raises(ValueError, match="unseen_pairing"):
        load_prompts("toybox:test")
