"""Other projects' kernels beside ours, with packages that stand for them.

Those in `fake_peers` compute in PyTorch what the peers document, so that adapters are tested
without them: layouts, sample distances, levels, decoders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import _peers, gpu_check, kernels
from benchmarks._cases import TABLES
from benchmarks._peer_cases import _gridencoder, peer_cases
from benchmarks._peer_lightplane import lightplane_cases
from benchmarks._timing import Budget

FAKES = Path(__file__).parent / "fake_peers"
PACKAGES = ("lightplane", "nerfacc", "gridencoder")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test finds its own packages, and leaves none behind."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TRITON_ALLOW_NON_CONSTEXPR_GLOBALS", "1")
    _forget()
    yield
    _forget()


def _forget() -> None:
    _peers._failed.clear()
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


def _rows(tmp_path: Path, peers: Path, *ops: str) -> list[dict]:
    file = tmp_path / "kernels.json"
    options = ["--dry-run", "--skip-tests", "--peer-rows", "only", "--ops", *ops]
    assert kernels.main([*options, "--peers", str(peers), "--json", str(file)]) == 0
    return json.loads(file.read_text())["peers"]


def _nerfacc(folder: Path, addition: str) -> Path:
    """A folder of peers with the stand-in for nerfacc, altered."""
    package = folder / "nerfacc" / "nerfacc"
    package.mkdir(parents=True)
    source = (FAKES / "nerfacc" / "nerfacc" / "__init__.py").read_text()
    (package / "__init__.py").write_text(source + addition)
    return folder


def test_peers_that_are_missing_are_listed_as_not_here(tmp_path: Path):
    rows = _rows(tmp_path, tmp_path, "render_triplane", "hash_encode", "composite")
    assert {row["peer"] for row in rows} == {"lightplane", "torch-ngp", "nerfacc"}
    assert all(row["status"] == "not here" and "forward" not in row for row in rows)


def test_a_peer_with_our_output_is_compared_and_timed(tmp_path: Path):
    rows = _rows(tmp_path, FAKES, "composite", "hash_encode")
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows:
        assert row["output_error"] < 1e-3
        assert row["gradient_error"] < 1e-3
        assert row["forward_backward"]["median_ms"] > 0
        assert all(len(ratios) == 2 for ratios in row["times_ours"].values())
    assert {tuple(row["times_ours"]) for row in rows} == {("eager",), ("numba",)}


def test_a_peer_with_another_output_gets_no_time(tmp_path: Path):
    wrong = "\n_own = accumulate_along_rays\n\n\ndef accumulate_along_rays(*given, **named):\n"
    folder = _nerfacc(tmp_path, wrong + "    return 1.01 * _own(*given, **named)\n")
    rows = _rows(tmp_path, folder, "composite")
    assert {row["status"] for row in rows} == {"differs"}
    assert all(row["output_error"] > 1e-3 for row in rows)
    assert all("forward" not in row and "times_ours" not in row for row in rows)


def test_output_that_is_not_a_number_differs(tmp_path: Path):
    wrong = "\n_own = accumulate_along_rays\n\n\ndef accumulate_along_rays(*given, **named):\n"
    folder = _nerfacc(tmp_path, wrong + "    return float('nan') * _own(*given, **named)\n")
    rows = _rows(tmp_path, folder, "composite")
    assert {row["status"] for row in rows} == {"differs"}


def test_a_peer_that_raises_gives_its_reason_and_the_rest_goes_on(tmp_path: Path):
    broken = "\n\ndef accumulate_along_rays(weights, values, **whose):\n"
    broken += "    if whose:\n        raise RuntimeError('no kernel image\\nlong trace')\n"
    broken += "    return (weights[..., None] * (1 if values is None else values)).sum(dim=-2)\n"
    rows = _rows(tmp_path, _nerfacc(tmp_path, broken), "composite")
    by_form = {(row["form"], row["status"]) for row in rows}
    assert by_form == {("nerfacc batched", "ok"), ("nerfacc packed", "failed")}
    assert {row.get("reason") for row in rows} == {None, "RuntimeError: no kernel image"}


def test_a_peer_that_does_not_import_is_tried_once(tmp_path: Path):
    count = tmp_path / "count"
    tried = f"\nwith open({str(count)!r}, 'a') as file:\n    file.write('x')\n"
    tried += "raise OSError('no compiler')\n"
    rows = _rows(tmp_path, _nerfacc(tmp_path, tried), "composite")
    assert [row["reason"] for row in rows] == ["OSError: no compiler"] * len(rows)
    assert len(rows) > 1
    assert count.read_text() == "x"


def test_another_copy_of_a_peer_is_not_taken_for_it(tmp_path: Path):
    case = next(case for case in peer_cases(True, True) if case.peer == "nerfacc")
    _peers.load(case, FAKES)
    (tmp_path / "nerfacc").mkdir()
    row = _peers.measure(case, tmp_path, CPU, {}, Budget(1, 1, 0.1), is_green=True)
    assert row["status"] == "failed"
    assert "not from" in row["reason"]


def test_no_speed_is_reported_where_our_tests_are_red():
    case = next(case for case in peer_cases(True, True) if case.peer == "nerfacc")
    ours = {"mine": (lambda: None, lambda: None)}
    row = _peers.measure(case, FAKES, CPU, ours, Budget(1, 3, 0.1), is_green=False)
    assert row["status"] == "ok"
    assert row["times_ours"] == {}


@pytest.mark.parametrize("table", ["L16F2T19", "L16F2T14"])
def test_every_level_is_the_gridencoders(table: str):
    """Of the timed workload, also hashed ones: its own formulas in float32."""
    case = _gridencoder("", *TABLES[table], 4096, along_rays=False)
    package = _peers.load(case, FAKES)
    for comparison in case.comparisons:
        assert all(error < _peers.TOLERANCE for error in _peers._errors(comparison, package, CPU))


def test_all_levels_of_the_gridencoder_are_nearly_ours(monkeypatch: pytest.MonkeyPatch):
    """Same coarsest and finest level; those between have up to 4 % more cells."""
    levels, features = TABLES["L16F2T14"]
    case = _gridencoder("", levels, features, 64, along_rays=False)
    package, made = _peers.load(case, FAKES), []
    encoder = package.GridEncoder
    monkeypatch.setattr(
        package, "GridEncoder", lambda *a, **k: made.append(encoder(*a, **k)) or made[-1]
    )
    theirs = case.theirs(package, CPU)
    (table,) = theirs.convert([torch.ones(levels.num_entries, features)])
    (out,) = theirs.run([table])
    assert out.shape == (64, 32)
    step, base = made[-1].steps
    cells = [base * 2 ** (step * level) - 1 for level in range(levels.num_levels)]
    assert cells == pytest.approx(levels.resolutions, rel=0.041)
    assert cells[0] == pytest.approx(levels.resolutions[0])
    assert cells[-1] == pytest.approx(levels.resolutions[-1])


def test_lightplanes_decoder_and_samples_are_ours():
    """Every row of the renderer: the wide trunk is our two decoders, the other its own formula."""
    cases = lightplane_cases(is_small=False)
    assert ["no asserts" in case.form for case in cases] == [False, True] * (len(cases) // 2)
    for case in cases[::2]:
        package = _peers.load(case, FAKES)
        output, gradient = _peers._errors(case.comparisons[0], package, CPU)
        assert output < 1e-5
        assert gradient < _peers.GRADIENT_TOLERANCE


def test_lightplane_rows_say_where_the_function_differs(tmp_path: Path):
    rows = _rows(tmp_path, FAKES, "render_triplane")
    assert {row["status"] for row in rows} == {"ok"}
    assert {bool(row["note"]) for row in rows} == {True, False}


def test_asserts_of_the_renderer_are_stripped():
    plain, stripped = lightplane_cases(is_small=False)[:2]
    package = _peers.load(plain, FAKES)
    leaves = plain.comparisons[0].leaves(CPU, torch.Generator().manual_seed(0))
    leaves[0].fill_(torch.nan)
    theirs = plain.comparisons[0].theirs(package, CPU)
    with pytest.raises(AssertionError, match="stripping"):
        theirs.run(theirs.convert(leaves))
    theirs = stripped.comparisons[0].theirs(package, CPU)
    assert theirs.run(theirs.convert(leaves))[0].isnan().any()


def test_the_gpu_check_runs_peers_last_and_only_when_asked(tmp_path: Path):
    names = [part.name for part in gpu_check.parts(Path("out"), "gpu", False, tmp_path)]
    assert names[-3:] == ["peers render_triplane", "peers hash_encode", "peers composite"]
    assert names[:-3] == [part.name for part in gpu_check.parts(Path("out"), "gpu", False)]
