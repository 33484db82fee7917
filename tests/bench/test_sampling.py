"""The benchmark of sampling runs, and its gate passes; it says nothing of time at this size."""

from __future__ import annotations

import sys

import pytest
import torch

from bench import sampling


def test_a_small_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    threads = str(torch.get_num_threads())
    arguments = ["--threads", threads, "--rows", "4", "--vocabulary", "3000", "--times", "1"]
    monkeypatch.setattr(sys, "argv", ["sampling", *arguments])
    sampling.main()
    printed = capsys.readouterr().out
    for kind in sampling.LOGITS:
        for name in sampling.SETTINGS:
            assert f"{kind:9} {name:30}" in printed
    assert "a JSON schema over 128,000 tokens" in printed
