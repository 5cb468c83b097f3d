"""Where models come from: folders, the hub's cache, the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from scaledreamer.encoders import _pretrained, clip_text
from tests.encoders import folders

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _cached(cache: Path, repository: str, source: Path) -> None:
    """As `huggingface_hub` lays out what it downloaded."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    shutil.copytree(source, root / "snapshots" / COMMIT)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "huggingface_hub._snapshot_download.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False
    )
    return tmp_path / "cache"


def test_a_hub_id_is_read_from_the_cache(offline: Path, tmp_path: Path) -> None:
    folders.save_projected_tower(tmp_path / "one")
    (tmp_path / "one" / "model_index.json").write_text("{}")
    _cached(offline, "owner/prior", tmp_path / "one")
    found = clip_text.load("owner/prior")
    assert found.encoder_id == clip_text.load(str(tmp_path / "one")).encoder_id
    assert _pretrained.locate("owner/prior@main").name == COMMIT


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("spec", ["owner/other", "owner/other@v2"])
def test_an_unknown_id_is_one_line_that_names_the_setting(spec: str) -> None:
    with pytest.raises(
        ValueError, match=r"^prior\.folder: got 'owner/other'; no such folder"
    ) as caught:
        _pretrained.locate(spec, "prior.folder")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["toybox:nothing", "./missing", "/missing/folder", "missing", "a/b/c"]
)
def test_other_names_are_folders(spec: str) -> None:
    with pytest.raises(ValueError, match=r"^encoder: got folder .*hub id OWNER/NAME"):
        _pretrained.locate(spec, "encoder")


def test_a_folder_here_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "prior").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert _pretrained.locate("owner/prior") == Path("owner/prior")


def test_only_weights_that_are_read_are_downloaded() -> None:
    names = [
        *("model_index.json", "README.md", "sd.ckpt", "sd.safetensors", "sd-pruned.safetensors"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"),
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        *("text_encoder/config.json", "text_encoder/model.fp16.safetensors"),
        "onnx/unet/model.safetensors",
        *("t5/model-00001-of-00002.safetensors", "t5/model-00002-of-00002.safetensors"),
        "t5/model.fp16-00001-of-00001.safetensors",
    ]
    wanted = {
        "unet": ["unet/diffusion_pytorch_model.safetensors"],
        "text_encoder": ["text_encoder/model.fp16.safetensors"],
        "t5": ["t5/model-00001-of-00002.safetensors", "t5/model-00002-of-00002.safetensors"],
        "": [],
        "vae": [],
    }
    for folder, files in wanted.items():
        assert _pretrained.wanted_weights(names, folder) == files
    tiny = ["config.json", "diffusion_pytorch_model.safetensors", "taesd_encoder.safetensors"]
    assert _pretrained.wanted_weights(tiny, "") == [tiny[1]]


def test_weights_follow_when_they_are_wanted(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locating takes small files; loading fetches what a folder lacks, in one precision."""
    folders.save_projected_tower(tmp_path / "one")
    weights = (tmp_path / "one" / "text_encoder" / "model.safetensors").read_bytes()
    (tmp_path / "one" / "text_encoder" / "model.safetensors").unlink()
    (tmp_path / "one" / "model_index.json").write_text("{}")
    asked: list[object] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        if options.get("local_files_only") and not offline.exists():
            raise FileNotFoundError("nothing cached")
        if not offline.exists():
            _cached(offline, repository, tmp_path / "one")
        root = offline / "models--owner--prior" / "snapshots" / COMMIT
        if any("safetensors" in one for one in options.get("allow_patterns", ())):
            (root / "text_encoder" / "model.safetensors").write_bytes(weights)
        return str(root)

    names = ["text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors", "sd.ckpt"]
    monkeypatch.setattr(_pretrained, "list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr(_pretrained, "snapshot_download", download)
    encoder = clip_text.load("owner/prior@v1")
    assert encoder(["a red box"]).tokens.shape[0] == 1
    assert asked == [
        ("owner/prior", {"revision": "v1", "local_files_only": True}),
        ("owner/prior", {"revision": "v1", "allow_patterns": ["*.json", "*.txt", "*.model"]}),
        ("owner/prior", {"revision": COMMIT, "allow_patterns": names[:1]}),
    ]
    asked.clear()
    clip_text.load("owner/prior@v1")  # from the cache alone
    assert asked == [("owner/prior", {"revision": "v1", "local_files_only": True})]
