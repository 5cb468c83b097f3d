"""The kernel benchmarks run at tiny sizes, and say what they can't do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, kernels
from benchmarks._timing import Timing, relative_error


def test_a_dry_run_measures_every_form_against_float64(tmp_path: Path):
    file = tmp_path / "kernels.json"
    options = ["--dry-run", "--skip-tests", "--ops", "sample_planes", "composite"]
    assert kernels.main([*options, "--json", str(file)]) == 0
    made = json.loads(file.read_text())
    forms = {(row["op"], row["form"]) for row in made["rows"]}
    assert {("sample_planes", "eager"), ("sample_planes", "numba"), ("composite", "eager")} <= forms
    for row in made["rows"]:
        assert row["output_error"] < 1e-5
        assert row["gradient_error"] < 1e-5
        assert row["forward"]["median_ms"] > 0
    assert made["bytes_per_s"]["copy"] > 0


def test_no_speed_is_reported_where_tests_are_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "_tests_pass", lambda op: False)
    file = tmp_path / "kernels.json"
    assert kernels.main(["--dry-run", "--ops", "composite", "--json", str(file)]) == 1
    assert all(row["times_eager"] == [] for row in json.loads(file.read_text())["rows"])


def test_timings_are_medians_with_their_spread():
    assert Timing.of([3.0, 1.0, 2.0]) == Timing(2.0, 1.0, 3.0)
    assert Timing.of([*range(1, 21)]) == Timing(10.5, 3, 18)
    assert relative_error(torch.tensor([1.0, 2.2]), torch.tensor([1.0, 2.0]).double()) == (
        pytest.approx(0.1, rel=1e-5)
    )


def test_the_whole_gpu_check_stays_under_ten_minutes():
    for is_dry in (False, True):
        assert sum(part.limit_s for part in gpu_check.parts(Path("out"), "gpu", is_dry)) < 600


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]):
    assert gpu_check.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_an_interrupted_part_is_reported_not_lost():
    slow = gpu_check.Part("slow", ("-c", "import time; time.sleep(20)"), limit_s=0.2)
    assert gpu_check._run_part(slow)["result"] == "stopped after 0 s"
    bad = gpu_check.Part("bad", ("-c", "raise SystemExit(3)"), limit_s=20)
    assert gpu_check._run_part(bad)["result"] == "exit code 3"


@pytest.mark.usefixtures("compiler")
def test_the_bandwidth_kernels_compile_to_wide_accesses():
    from benchmarks._limit_kernels import read, reduce
    from benchmarks.compiled import compile_kernel

    pointers = {"table": "*fp32", "index": "*i32", "C": "constexpr", "BLOCK": "constexpr"}
    made = compile_kernel(reduce, pointers, {"C": 32, "BLOCK": 64}, 90)
    assert made.count(r"REDG.*F32x4") == 4
    pointers = {"source": "*fp32", "sums": "*fp32", "size": "i32"}
    pointers |= {"ROUNDS": "constexpr", "BLOCK": "constexpr"}
    made = compile_kernel(read, pointers, {"ROUNDS": 16, "BLOCK": 1024}, 90)
    assert made.count(r"LDG\.E\.128") >= 1
