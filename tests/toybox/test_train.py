"""The training scripts of the embedded models, at toy size, through to what loads their result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from scaledreamer.cameras import ring
from scaledreamer.encoders import clip_score, clip_text
from scaledreamer.pipeline import GeneratorFolder
from scaledreamer.priors import unet
from scaledreamer.storage import resolve_folder
from scaledreamer.toybox.train import clip, dataset, generator, prior
from scaledreamer.toybox.train._run import Run
from scaledreamer.toybox.world import grammar


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "CHUNK", 12)
        dataset.main(["--output", str(folder), "--count", "24", "--workers", "1"])
    return folder


def test_the_images_are_of_all_forms_and_an_interrupted_set_continues(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    loaded = dataset.Images.load(images)
    assert loaded.rgba.shape == (24, 4, 32, 32)
    assert len({grammar.form_of(grammar.parse(p)) for p in loaded.prompts}) >= 3
    monkeypatch.setattr(dataset, "CHUNK", 12)
    for count in ("12", "24"):
        dataset.main(["--output", str(tmp_path), "--count", count, "--workers", "1"])
    again = dataset.Images.load(tmp_path)
    assert torch.equal(again.rgba, loaded.rgba)
    with pytest.raises(SystemExit, match="2"):
        dataset.main(["--output", str(tmp_path), "--count", "36", "--size-px", "16"])
    assert again.prompts == loaded.prompts


def test_backgrounds_fill_what_the_object_leaves(images: Path):
    loaded = dataset.Images.load(images)
    rows = torch.arange(24)
    pixels = loaded.on_background(rows, torch.Generator().manual_seed(0))
    corner = pixels[:, :, 0, 0]
    assert 0.1 < (corner == 1).all(dim=1).float().mean() < 0.8
    empty = loaded.rgba[:, 3] == 0
    filled = corner[:, :, None, None].expand_as(pixels).movedim(1, -1)[empty]
    torch.testing.assert_close(pixels.movedim(1, -1)[empty], filled)


def test_a_stopped_run_resumes_exactly(tmp_path: Path):
    def train(name: str, *stops: int) -> torch.Tensor:
        module = nn.Linear(4, 1)
        for stop in stops:
            torch.manual_seed(0)
            module = nn.Linear(4, 1)
            run = Run(folder=tmp_path / name, module=module, num_steps=6, learning_rate=0.1, seed=1)
            run.train(
                lambda _, g, m=module: {"loss": m(torch.randn(8, 4, generator=g)).square().mean()},
                until=stop,
            )
            run.use_ema()
        return module.weight.detach()

    assert torch.equal(train("whole", 6), train("parts", 3, 6))


def test_a_parameter_without_gradient_ends_a_run(tmp_path: Path):
    module = nn.ModuleDict({"used": nn.Linear(4, 1), "idle": nn.Linear(4, 1)})
    run = Run(folder=tmp_path, module=module, num_steps=3, learning_rate=0.1, seed=1)
    with pytest.raises(AssertionError, match=r"2 parameters get no gradient, such as idle"):
        run.train(lambda _, g: {"loss": module["used"](torch.ones(2, 4)).square().mean()})


def test_clip_trains_and_loads_as_encoder_and_scorer(images: Path, tmp_path: Path):
    folder = tmp_path / "clip"
    options = ["--images", str(images), "--state", str(tmp_path), "--output", str(folder)]
    clip.main(["--role", "clip", *options, "--steps", "50", "--batch", "8", "--threads", "1"])
    encoder = clip_text.load(str(folder))
    assert encoder.unknown_words("a crimson mug") == ["crimson"]
    every = sorted(
        {word for split in grammar.SPLITS for p in grammar.prompts(split) for word in p.split()}
    )
    assert encoder.unknown_words(" ".join(every)) == []
    scorer = clip_score.load(str(folder))
    features = scorer.image_features(torch.rand(2, 3, 48, 48))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    card = json.loads((folder / "card.json").read_text())
    assert card["steps"] == 50
    assert load_file(folder / "model.safetensors")["logit_scale"].dtype == torch.float16


def test_earlier_weights_are_matched_word_by_word(tmp_path: Path):
    shipped = resolve_folder("toybox:clip")
    tokenizer = clip.build_tokenizer()
    old = json.loads((shipped / "tokenizer.json").read_text())
    words = old["model"]["vocab"]
    dropped = words.pop("robot")
    words["zebra"] = dropped
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tokenizer.json").write_text(json.dumps(old))
    weights = load_file(shipped / "model.safetensors")
    save_file(weights, copy / "model.safetensors")
    model = clip.build_model(len(tokenizer), 160, 5, 8)
    name = "text_model.embeddings.token_embedding.weight"
    before = model.state_dict()[name].clone()
    clip.start_from(copy, model, tokenizer)
    after = model.state_dict()[name]
    row = tokenizer.get_vocab()
    torch.testing.assert_close(after[row["red"]], weights[name][words["red"]].float())
    assert torch.equal(after[row["robot"]], before[row["robot"]])  # not in that vocabulary
    torch.testing.assert_close(model.logit_scale, weights["logit_scale"].float())


def test_wrong_captions_are_near_misses_of_words_and_of_the_view():
    prompt = "a red house next to a green tree"
    turned = "a green tree next to a red house"
    plain = clip.wrong_captions(prompt, prompt, 3, seed=5)
    assert len({prompt, *plain}) == 4
    viewed = clip.wrong_captions(prompt, f"{turned}, back view", 3, seed=5)
    assert all(caption.endswith(", back view") for caption in viewed[:-1])
    same, _, words = viewed[-1].partition(", ")
    assert same == turned
    assert words in {"front view", "side view", "overhead view"}


def test_images_without_a_stamp_are_not_added_to(images: Path, tmp_path: Path):
    (tmp_path / "chunk_0000.json").write_text("[]")
    with pytest.raises(SystemExit, match="2"):
        dataset.main(["--output", str(tmp_path), "--count", "12"])


def test_prior_trains_and_loads_as_a_prior(images: Path, tmp_path: Path):
    folder = tmp_path / "prior"
    prior.main(
        [
            *("--images", str(images), "--state", str(tmp_path / "state"), "--output", str(folder)),
            *("--steps", "50", "--batch", "4", "--widths", "32", "32", "--threads", "1"),
        ]
    )
    loaded = unet.create(unet.Config(folder=str(folder)))
    assert loaded.cameras == dataset.CAMERAS
    assert loaded.background == dataset.BACKGROUND
    condition = loaded.condition(["a red mug"], ring(1, (0.0, 180.0)))
    noise = torch.randn(1, *loaded.latent_shape).expand(2, -1, -1, -1)
    eps = loaded.predict_noise(noise, torch.full((2,), 0.5), condition.positive)
    assert torch.isfinite(eps).all()
    assert not torch.equal(eps[0], eps[1])


def test_a_generator_ships_with_its_card(tmp_path: Path):
    folder = tmp_path / "generator"
    shipped = str(resolve_folder("toybox:generator"))
    generator.main([shipped, "--init", shipped, "--output", str(folder)])
    assert GeneratorFolder.find(str(folder)).config == GeneratorFolder.find(shipped).config
    card = json.loads((folder / "card.json").read_text())
    assert card["steps"] == GeneratorFolder.find(shipped).config["step"]
    assert card["visits of each prompt"] > 0
    assert card["initial weights"]["steps"] > 0
    with Image.open(folder / "samples.png") as sheet:
        assert sheet.width > 4 * 64
    assert "samples.png" in (folder / "README.md").read_text()
