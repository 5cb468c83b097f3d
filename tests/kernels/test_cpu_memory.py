"""The allocator setting is taken by glibc and harmless elsewhere."""

from __future__ import annotations

import sys

import pytest

from scaledreamer.kernels import cpu_memory


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cpu_memory.keep_freed_memory() is False


def test_a_c_library_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_memory.ctypes, "CDLL", lambda _: object())
    assert cpu_memory.keep_freed_memory() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_glibc_takes_every_setting_again_and_again():
    assert cpu_memory.keep_freed_memory()
    assert cpu_memory.keep_freed_memory()
