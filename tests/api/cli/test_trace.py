"""`kvtrie trace record | simulate`, and the names they had before."""

from __future__ import annotations

import sys

import pytest

from kvtrie.api.cli import main


def test_the_former_names_work_and_name_the_new_ones_once(tmp_path, capsys):
    log, missing = str(tmp_path / "log"), str(tmp_path / "none")
    assert main(["record", log, "--", sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert capsys.readouterr().err == "kvtrie record is now called kvtrie trace record\n"
    assert main(["simulate", missing]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "kvtrie simulate is now called kvtrie trace simulate"
    assert missing in second
    assert main(["trace", "record", log, "--", sys.executable, "-c", ""]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["trace", "--help"]])
def test_help_lists_the_new_names_only(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert ("record" in listed, "simulate" in listed) == (
        (False, False) if arguments == ["--help"] else (True, True)
    )
    assert ("trace" in listed) == (arguments == ["--help"])


def test_usage_names_the_command_as_it_was_typed(capsys):
    with pytest.raises(SystemExit):
        main(["trace", "record", "--help"])
    assert capsys.readouterr().out.startswith("usage: kvtrie trace record [--bytes SIZE] FILE -- COMMAND...")
