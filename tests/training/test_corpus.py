from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gorgon.errors import TrainingError
from gorgon.training.corpus import CorpusWriter, open_corpus
from gorgon.training.prompts import Job


def _append(writer: CorpusWriter, index: int, length: int) -> None:
    states = np.full((length, 4), index, np.float16)
    tokens = list(range(length))
    writer.append(tokens, np.arange(length) + 1, states, Job(index, tokens[:2], 0.5, 8))


def test_texts_read_back_and_positions_begin_at_the_last_prompt_token(tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path, 4)
    _append(writer, 7, 5)
    _append(writer, 3, 4)
    writer.close()
    corpus = open_corpus(tmp_path, 4)
    assert corpus.jobs.tolist() == [7, 3]
    assert corpus.num_answer_tokens == 5
    assert corpus.positions(np.arange(2)).tolist() == [1, 2, 3, 6, 7]
    assert corpus.states[:, 0].tolist() == [7] * 5 + [3] * 4


def test_an_interrupted_write_is_cut_off(tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path, 4)
    _append(writer, 0, 5)
    writer.close()
    for name in ("texts.i64", "tokens.i32", "best.i32", "states.f16"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"\1" * 6)
    writer = CorpusWriter(tmp_path, 4)
    assert writer.done == {0}
    _append(writer, 1, 3)
    writer.close()
    assert open_corpus(tmp_path, 4).tokens.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]


def test_a_lost_file_is_noticed(tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path, 4)
    _append(writer, 0, 5)
    writer.close()
    (tmp_path / "states.f16").unlink()
    with pytest.raises(TrainingError, match=r"states\.f16"):
        CorpusWriter(tmp_path, 4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    writer = CorpusWriter(tmp_path, 4)
    with Path("/dev/full").open("ab", buffering=0) as full:
        writer._files["states.f16"] = full
        with pytest.raises(TrainingError, match="make room"):
            _append(writer, 0, 5)
    assert writer.done == set()
    writer.close()
