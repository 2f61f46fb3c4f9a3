"""Heads on a made-up language whose next token follows from the last: all of it can be learnt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: scripts/setup --train")

from gorgon.errors import TrainingError  # noqa: E402
from gorgon.training.batches import Batch, Batches, frequent_tokens, shuffled  # noqa: E402
from gorgon.training.calibration import Calibration  # noqa: E402
from gorgon.training.corpus import Corpus  # noqa: E402
from gorgon.training.evaluation import (  # noqa: E402
    Subject,
    accepted_by_trees,
    survey,
    tokens_per_step,
)
from gorgon.training.heads import HeadsConfig  # noqa: E402
from gorgon.training.learning import Learning  # noqa: E402
from gorgon.training.quantisation import round_to  # noqa: E402
from gorgon.training.trainer import Schedule, Trainer  # noqa: E402

VOCAB, EMBD, LENGTH = 32, 32, 40
CONFIG = HeadsConfig(num_heads=2, num_hidden=64, window=1, num_outputs=VOCAB)
CPU = torch.device("cpu")
AS_STATED = Calibration(np.array([0.0, 1.0]), np.array([0.0, 1.0]))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _corpus() -> Corpus:
    """Texts that walk along one fixed permutation; states are the tokens' embeddings."""
    rng = np.random.default_rng(0)
    order = np.roll(rng.permutation(VOCAB), 0)
    follower = np.empty(VOCAB, np.int64)
    follower[order] = np.roll(order, -1)
    texts = []
    for start in range(8):
        text = [start]
        while len(text) < LENGTH:
            text.append(int(follower[text[-1]]))
        texts.append(text)
    tokens = np.array(texts, np.int32).ravel()
    return Corpus(
        tokens=tokens,
        best=follower[tokens].astype(np.int32),
        states=_embedding().numpy()[tokens].astype(np.float16),
        starts=np.arange(9) * LENGTH,
        given=np.full(8, 3),
        temperatures=np.zeros(8, np.float32),
        jobs=np.arange(8),
    )


def _embedding() -> Any:
    return torch.randn(VOCAB, EMBD, generator=torch.Generator().manual_seed(1))


def _trainer(config: HeadsConfig, num_steps: int = 300) -> Trainer:
    torch.manual_seed(0)
    embedding = _embedding()
    return Trainer(config, Schedule(num_steps, 1e-2, 10), embedding, embedding)


def _batches(corpus: Corpus, config: HeadsConfig) -> Batches:
    ids = np.arange(VOCAB, dtype=np.int32)
    return Batches(corpus, ids, VOCAB, config.num_before, config.num_heads, CPU)


def _feed(corpus: Corpus, config: HeadsConfig) -> Iterator[Batch]:
    positions = corpus.positions(np.arange(6))
    return map(_batches(corpus, config).at, shuffled(positions, 64, 0))


@pytest.mark.parametrize("config", [CONFIG, HeadsConfig("medusa", 2, num_outputs=VOCAB)])
def test_heads_learn_what_can_be_learnt(config: HeadsConfig) -> None:
    corpus, trainer = _corpus(), _trainer(config)
    feed, texts = _feed(corpus, config), np.arange(6, 8)
    for _ in range(300):
        trainer.learn(next(feed))
    assert trainer.rounded
    subject = Subject(trainer.heads, trainer.embedding, torch.arange(VOCAB))
    batches, positions = _batches(corpus, config), corpus.positions(texts)
    found = survey(subject, batches, positions)
    assert found.accuracy()[0, 0] > 0.9
    chain = tokens_per_step(corpus, texts, found.accepted(2))
    trees = accepted_by_trees(subject, batches, positions, [AS_STATED] * 2, (2, 8))
    assert chain > 1.8
    tree = tokens_per_step(corpus, texts, trees[8])
    assert tree >= tokens_per_step(corpus, texts, trees[2]) > 1.5


def test_states_before_the_last_prompt_token_are_zeros() -> None:
    corpus = _corpus()
    batch = _batches(corpus, CONFIG).at(torch.tensor([2, 3, LENGTH + 2]))
    assert batch.hidden[0, 1].abs().max() == 0
    assert batch.hidden[1, 1].tolist() == corpus.states[2].tolist()
    assert batch.hidden[2, 1].abs().max() == 0
    assert batch.tokens[1].tolist() == corpus.tokens[3:6].tolist()
    assert batch.targets[:, 1].tolist() == corpus.best[4:6].tolist()


def test_targets_beyond_the_text_are_unknown() -> None:
    corpus = _corpus()
    batch = _batches(corpus, CONFIG).at(torch.tensor([LENGTH - 2, LENGTH - 3]))
    assert batch.known.T.tolist() == [[True, False], [True, True]]


def test_a_stopped_training_goes_on_to_the_same_heads(tmp_path: Path) -> None:
    corpus = _corpus()
    straight = _trainer(CONFIG, 40)
    feed = _feed(corpus, CONFIG)
    for _ in range(40):
        straight.learn(next(feed))
    stopped = _trainer(CONFIG, 40)
    feed = _feed(corpus, CONFIG)
    for _ in range(25):
        stopped.learn(next(feed))
    stopped.save(tmp_path / "last.pt")
    resumed = _trainer(CONFIG, 40)
    resumed.restore(tmp_path / "last.pt")
    for _ in range(15):
        resumed.learn(next(feed))
    for name, tensor in straight.weights().items():
        assert torch.allclose(tensor, resumed.weights()[name], atol=1e-5), name


def test_training_stops_when_the_held_out_loss_no_longer_falls(tmp_path: Path) -> None:
    corpus, trainer = _corpus(), _trainer(CONFIG, 4000)
    learning = Learning(trainer, tmp_path, patience=1)
    nothing_to_gain = _batches(corpus, CONFIG).at(torch.arange(2, 30))
    nothing_to_gain.targets.copy_(torch.randint(VOCAB, nothing_to_gain.targets.shape))
    list(learning.run(_feed(corpus, CONFIG), lambda: [nothing_to_gain]))
    assert trainer.step < 4000


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"PK\3\4 no checkpoint")
    with pytest.raises(TrainingError, match="remove it"):
        _trainer(CONFIG).restore(path)
    _trainer(HeadsConfig("medusa", 2, num_outputs=VOCAB)).save(path)
    with pytest.raises(TrainingError, match="remove it"):
        _trainer(CONFIG).restore(path)


def test_rounding_is_that_of_ggml() -> None:
    weight = torch.randn(16, 64)
    for kind in ("Q4_0", "Q8_0", "F16"):
        raw = gguf.GGMLQuantizationType[kind]
        stored = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), raw), raw)
        assert np.allclose(round_to(weight, kind).numpy(), stored, atol=1e-6), kind


def test_frequent_tokens_come_first() -> None:
    best = np.array([5, 5, 5, 2, 2, 9], np.int32)
    assert frequent_tokens(best, 16, 3).tolist() == [5, 2, 9]
