"""``gorgon train``: the model answers prompts, heads learn from it, a heads file comes out.

Stages, each going on where an earlier run of the same command stopped:

    prompts -> answers and states (a corpus on disk) -> heads (checkpoints) -> file and report
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from gorgon.compile.sidecar import write_calibrated
from gorgon.config import EngineSettings
from gorgon.errors import TrainingError
from gorgon.llama.heads import load_heads
from gorgon.llama.model import Model, ModelInfo
from gorgon.training.batches import Batches, frequent_tokens, shuffled
from gorgon.training.corpus import Corpus, CorpusWriter, Ints, Longs, open_corpus
from gorgon.training.evaluation import Subject, survey
from gorgon.training.export import export
from gorgon.training.heads import HeadsConfig, make_heads
from gorgon.training.learning import Learning
from gorgon.training.prompts import Encode, Job, answer_jobs, read_prompts, split
from gorgon.training.quantisation import round_to
from gorgon.training.report import make_report
from gorgon.training.served import calibrate, walk
from gorgon.training.settings import TrainingSettings
from gorgon.training.stages import Stages
from gorgon.training.trainer import Schedule, Trainer
from gorgon.training.whole_file import write_whole
from gorgon.training.writing import (
    Author,
    LlamaAuthor,
    TorchAuthor,
    default_slots,
    encode_all,
    invent,
)

logger = logging.getLogger("gorgon.training")

_MEASURED_POSITIONS = 2048  # for a look at the held-out loss


@dataclass(frozen=True, slots=True)
class Base:
    """What training needs of the base model, on the device that heads are trained on."""

    info: ModelInfo
    embedding: Tensor
    output: Tensor


def train(
    settings: TrainingSettings,
    engine: EngineSettings,
    model: Model,
    encode: Encode,
    stages: Stages,
) -> None:
    """Make ``settings.out`` and, beside it, a report as text and picture.

    Args:
        settings: what to make.
        engine: threads and device for llama.cpp.
        model: the base, loaded.
        encode: a user's words to the tokens of a whole prompt, by the chat template.
        stages: told what each stage takes.

    Raises:
        TrainingError: bad prompts, a full disk, a damaged or foreign work folder.
        HeadsError: when the heads cannot be written.
    """
    device = _device(settings)
    folder = settings.work_folder
    if settings.out.is_dir():
        raise TrainingError(f"{settings.out}: is a folder; give the name of a file with --out")
    texts = _read_texts(settings)
    _claim(folder, settings, model.info)
    with stages.stage("answers"):
        corpus, first_held_out = _write_corpus(settings, engine, model, encode, device, texts)
    with stages.stage("heads"):
        base = _load_base(model.info, device)
        trainer, token_ids = _train_heads(settings, corpus, first_held_out, base)
    with stages.stage("file, report"):
        _finish(settings, engine, corpus, first_held_out, base, trainer, token_ids)
    if settings.work is None:
        shutil.rmtree(folder, ignore_errors=True)


def _device(settings: TrainingSettings) -> torch.device:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device: PyTorch finds no CUDA device here; use cpu or auto")
    on_gpu = settings.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def _claim(folder: Path, settings: TrainingSettings, base: ModelInfo) -> None:
    """Refuse to mix this run's files with those of another one."""
    wanted = json.loads(settings.model_dump_json(exclude={"out", "work", "num_slots", "device"}))
    wanted["base"] = base.fingerprint
    path = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: {error}; remove the folder or name another one") from error
    if found is None:
        write_whole(path, lambda part: part.write_text(json.dumps(wanted, indent=2)))
        return
    known = found if isinstance(found, dict) else {}
    different = [key for key in wanted if known.get(key) != wanted[key]]
    if different:
        raise TrainingError(
            f"{folder}: holds a run with different {different[0]}; remove it to start over, "
            "or name another folder with --work"
        )


def _read_texts(settings: TrainingSettings) -> tuple[list[str], list[str]]:
    """Prompts to train on and prompts to measure with."""
    prompts = read_prompts(settings.prompts)
    for reason, count in prompts.skipped.items():
        logger.warning("%s: left out %d lines: %s", settings.prompts, count, reason)
    num_held_out = min(settings.num_held_out, max(1, len(prompts.texts) // 5))
    kept, held_out = split(prompts.texts, num_held_out, settings.seed)
    if not kept:
        raise TrainingError(f"{settings.prompts}: one prompt is not enough to train and measure")
    return kept, held_out


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )  # fmt: skip


def _write_corpus(
    settings: TrainingSettings,
    engine: EngineSettings,
    model: Model,
    encode: Encode,
    device: torch.device,
    texts: tuple[list[str], list[str]],
) -> tuple[Corpus, int]:
    """All answers, and the number of the first job that is held out."""
    to_train, num_long = encode_all(texts[0], encode, settings.max_prompt_tokens)
    to_measure, _ = encode_all(texts[1], encode, settings.max_prompt_tokens)
    if num_long:
        logger.warning("left out %d prompts over %d tokens", num_long, settings.max_prompt_tokens)
    if not to_train or not to_measure:
        raise TrainingError(f"{settings.prompts}: all prompts are longer than max_prompt_tokens")
    author = _make_author(settings, engine, model, device)
    writer = CorpusWriter(settings.work_folder / "answers", model.info.num_embd)
    try:
        to_train += _invented(settings, author, encode)
        jobs = list(answer_jobs(to_train, settings.num_answers, settings.max_tokens, settings.seed))
        first_held_out = len(jobs)
        jobs += [
            Job(first_held_out + i, tokens, 0.0, settings.max_tokens)
            for i, tokens in enumerate(to_measure)
        ]
        _write_answers(author, jobs, writer)
    finally:
        writer.close()
        author.close()
    return open_corpus(settings.work_folder / "answers", model.info.num_embd), first_held_out


def _make_author(
    settings: TrainingSettings, engine: EngineSettings, model: Model, device: torch.device
) -> Author:
    num_cells = settings.max_prompt_tokens + settings.max_tokens
    slots, seed = settings.num_slots, settings.seed
    use_torch = settings.source == "torch" or (settings.source == "auto" and device.type == "cuda")
    if use_torch:
        return TorchAuthor(model.info.path, model.eog_ids, device, slots, num_cells, seed)
    return LlamaAuthor(model, engine, slots or default_slots(device), num_cells, seed)


def _invented(settings: TrainingSettings, author: Author, encode: Encode) -> list[list[int]]:
    """The prompts that the model made up; kept in a file, so that a later run has the same."""
    path = settings.work_folder / "invented.json"
    if not settings.num_invented:
        return []
    if not path.exists():
        with _progress() as progress:
            task = progress.add_task("prompts", total=settings.num_invented, note="")
            found = invent(
                author, encode, settings.num_invented, settings.seed, lambda: progress.advance(task)
            )
        write_whole(path, lambda part: part.write_text(json.dumps(found)))
    invented: list[list[int]] = json.loads(path.read_text())
    return invented


def _write_answers(author: Author, jobs: Sequence[Job], writer: CorpusWriter) -> None:
    missing = [job for job in jobs if job.index not in writer.done]
    with _progress() as progress:
        task = progress.add_task(
            "answers", total=len(jobs), completed=len(jobs) - len(missing), note=""
        )
        num_tokens = 0
        for count in author.write(missing, writer):
            num_tokens += count
            progress.update(task, advance=1, note=f"{num_tokens:,} tokens")


def _load_base(info: ModelInfo, device: torch.device) -> Base:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(info.path).tensors}

    def load(name: str) -> Tensor:
        tensor = tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(values, np.float32)).to(device)

    embedding = load("token_embd.weight")
    own = info.output_tensor != "token_embd.weight"
    output = load(info.output_tensor) if own else embedding
    halves = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    dtype = torch.bfloat16 if halves else torch.float32
    return Base(info, embedding.to(dtype), output)


def _train_heads(
    settings: TrainingSettings, corpus: Corpus, first_held_out: int, base: Base
) -> tuple[Trainer, Ints]:
    """Trained heads, those with the lowest held-out loss, and the tokens of their rows."""
    torch.manual_seed(settings.seed)
    held_out = corpus.jobs >= first_held_out
    positions = corpus.positions(np.flatnonzero(~held_out))
    measured = torch.from_numpy(_sample(corpus.positions(np.flatnonzero(held_out))))
    if not len(positions) or not len(measured):
        raise TrainingError("the model's answers are empty: there is nothing to learn from")
    config = settings.heads(base.info.num_vocab)
    token_ids = frequent_tokens(corpus.best[positions], base.info.num_vocab, config.num_outputs)
    size = min(settings.batch_size, len(positions))
    num_steps = max(20, round(settings.epochs * len(positions) / size))
    schedule = Schedule(num_steps, settings.learning_rate, kind=settings.matrix_type)
    rows = torch.from_numpy(token_ids).long().to(base.output.device)
    trainer = Trainer(config, schedule, base.embedding, base.output[rows])
    batches = _batches(corpus, token_ids, base, config)
    learning = Learning(trainer, settings.work_folder, settings.patience)
    with _progress() as progress:
        task = progress.add_task("heads", total=num_steps, completed=trainer.step, note="")
        feed = shuffled(positions, size, settings.seed, trainer.step)
        for loss in learning.run(
            map(batches.at, feed), lambda: map(batches.at, measured.split(size))
        ):
            note = f"loss {loss:.3f}, held out {learning.best:.3f}"
            progress.update(task, completed=trainer.step, note=note)
    return trainer, token_ids


def _finish(
    settings: TrainingSettings,
    engine: EngineSettings,
    corpus: Corpus,
    first_held_out: int,
    base: Base,
    trainer: Trainer,
    token_ids: Ints,
) -> None:
    """Measure the heads as they will be stored, calibrate, write file and report."""
    config, weights = trainer.config, trainer.weights()
    heads = make_heads(config, weights["output.weight"])
    kind = settings.matrix_type
    stored = {
        name: round_to(weight, kind) if weight.ndim == 2 else weight
        for name, weight in weights.items()
    }
    heads.load_state_dict(stored)
    embedding = base.embedding.float().cpu()
    subject = Subject(heads, embedding, torch.from_numpy(token_ids).long())
    cpu = Base(base.info, embedding, base.output.cpu())
    texts = np.flatnonzero(corpus.jobs >= first_held_out)
    batches = _batches(corpus, token_ids, cpu, config)
    positions = corpus.positions(texts)
    found = survey(subject, batches, positions)
    provenance: dict[str, str | int | float] = {
        "answer_tokens": corpus.num_answer_tokens,
        "texts": corpus.num_texts,
        "steps": trainer.step,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
    kinds = {"block": kind, "output.weight": kind}
    raw = settings.work_folder / "raw.medusa.gguf"
    export(raw, config, weights, token_ids, base.info, kinds, provenance)
    with contextlib.closing(load_heads(raw, base.info, engine)) as served:
        tested = walk(served, corpus, texts)
    calibration = calibrate(tested)
    write_calibrated(settings.out, raw, calibration, {"calibration_positions": len(positions)})
    make_report(settings.out, subject, corpus, texts, batches, found, tested)


def _batches(corpus: Corpus, token_ids: Ints, base: Base, config: HeadsConfig) -> Batches:
    device = base.embedding.device
    before, depths = config.num_before, config.num_heads
    return Batches(corpus, token_ids, base.info.num_vocab, before, depths, device)


def _sample(positions: Longs) -> Longs:
    return positions[:: max(1, len(positions) // _MEASURED_POSITIONS)]
