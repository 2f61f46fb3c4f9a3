"""The converter's input does not stay in memory."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from gorgon.compile.convert import page_out, resident_file_bytes

SIZE = 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and MADV_PAGEOUT")
def test_pages_of_the_checkpoint_are_given_back_and_can_be_read_again(tmp_path: Path) -> None:
    path, folder = tmp_path / "blob", tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(path)  # as in the hub's cache
    path.write_bytes(b"weights!" * (SIZE // 8))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with mapped:
        assert mapped[::4096].count(b"w") == SIZE // 4096
        before = resident_file_bytes()
        page_out(folder)
        given_back = before - resident_file_bytes()
        assert given_back > 0.9 * SIZE
        assert mapped[-8:] == b"weights!"
