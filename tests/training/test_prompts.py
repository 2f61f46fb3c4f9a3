from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from gorgon.errors import TrainingError
from gorgon.training.prompts import answer_jobs, empty_turn, read_prompts, split


def test_bad_lines_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    good = [json.dumps({"prompt": f"question {i}"}) for i in range(5)]
    huge = json.dumps({"prompt": "x" * 3_000_000})
    lines = [*good, "", good[0], "{broken", '{"prompt": 3}', '{"prompt": "\\ud800"}', huge]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + good[4].encode())
    prompts = read_prompts(path)
    assert prompts.texts == [f"question {i}" for i in range(5)]
    assert prompts.skipped == {"empty": 1, "doubled": 2, "malformed": 4, "too long": 1}
    assert prompts.first_bad == f"{path}:8"


def test_packed_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt.xz"
    path.write_bytes(lzma.compress(b"one\ntwo\n\nthree"))
    assert read_prompts(path).texts == ["one", "two", "three"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x00\x01\n\x00\n", b"{}\n[]\n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"prompts\.jsonl"):
        read_prompts(path)


def test_damaged_archives_and_missing_files_are_refused(tmp_path: Path) -> None:
    text = b"".join(b"%d\n" % (i**5) for i in range(1000))
    (tmp_path / "cut.txt.xz").write_bytes(lzma.compress(text)[:40])
    packed = bytearray(gzip.compress(text))
    packed[20:200] = bytes(180)
    (tmp_path / "overwritten.txt.gz").write_bytes(packed)
    for name in ("cut.txt.xz", "overwritten.txt.gz", "none.txt"):
        with pytest.raises(TrainingError, match=name):
            read_prompts(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes('{"prompt": "one"}\n{"prompt": "two"}'.encode("utf-8-sig"))
    assert read_prompts(path).texts == ["one", "two"]


def test_half_of_the_answers_are_greedy_and_the_split_is_clean() -> None:
    kept, held_out = split([str(i) for i in range(100)], 10, seed=3)
    assert len(kept) == 90
    assert not set(kept) & set(held_out)
    jobs = list(answer_jobs([[1]] * 100, 1, 8, seed=0))
    assert sum(job.temperature == 0 for job in jobs) == 50
    assert all(job.temperature == 0 or 0.5 <= job.temperature <= 1 for job in jobs)


def test_no_prompt_is_answered_greedily_twice() -> None:
    jobs = list(answer_jobs([[1], [2]], 3, 8, seed=0))
    assert [job.tokens[0] for job in jobs] == [1, 1, 1, 2, 2, 2]
    assert [job.temperature == 0 for job in jobs] == [True, False, False] * 2
    assert [job.index for job in jobs] == list(range(6))


def test_the_empty_turn_is_what_all_prompts_share() -> None:
    def encode(text: str) -> list[int]:
        return [1, 2, *text.encode(), 3, 4]

    assert empty_turn(encode) == ([1, 2], [3, 4])
