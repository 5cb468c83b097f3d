"""The built wheel works away from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import trimesh

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_it_holds_the_embedded_models(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("clip", "judge", "prior", "generator"):
        inside = f"scaledreamer/toybox/weights/{folder}/"
        assert any(n.startswith(inside) and n.endswith(".safetensors") for n in names), folder
    for name in ("vocabulary_1", "vocabulary_2", "synonyms"):
        assert f"scaledreamer/toybox/world/{name}.json" in names
    assert not any(name.startswith(("tests/", "runs/", "build/")) for name in names)


def test_it_generates_a_mesh_outside_the_repository(wheel: Path, tmp_path: Path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    prompt = "a blue mug with a white handle"
    code = "import sys; from scaledreamer.cli.generate import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--prompt", prompt, "--resolution", "48", "--output", "out"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (work / "out").glob("*.glb")
    assert trimesh.load_mesh(path).is_watertight
