"""Files are seen whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsd_policy.files import whole_file, write_json


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("half")
        assert path.read_text() == "old"
        assert list(tmp_path.glob("*.hdf5")) == [path], (
            "a killed process would leave what is read as a file of its kind"
        )
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_while_it_is_written_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_readable_by_others_as_the_user_allows(tmp_path: Path) -> None:
    """A file made as a temporary one is its maker's alone, and a shared checkpoint could not be read."""
    write_json(tmp_path / "manifest.json", {"a": 1})
    (tmp_path / "plain").touch()
    assert (tmp_path / "manifest.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"a": 1}
