"""From a document to rows, tables, charts and comparisons."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from gorgon.bench import run
from gorgon.bench.compare import compare
from gorgon.bench.document import Document, read_document
from gorgon.bench.report import REPLAYED, as_csv, markdown
from gorgon.bench.summary import accepted_by_depth, category_speedup, summarise
from gorgon.errors import BenchError
from tests.bench.conftest import make_document

ROOT = Path(__file__).parent.parent.parent


def test_rows() -> None:
    document = make_document(1.5)
    rows = {(row.party, row.clients): row for row in summarise(document)}
    assert len(rows) == 4
    assert rows["normal", 1].speedup.value == 1.0
    row = rows["tree:8", 2]
    assert row.speedup.value == pytest.approx(1.5)
    assert row.tokens_per_step == pytest.approx(2.1)
    assert row.accepted_share == pytest.approx(0.55)
    assert row.same_text == 1.0
    assert row.joules_per_token == pytest.approx(4.2 / 42)
    assert row.total_rate == pytest.approx(row.tokens / row.seconds)


def test_goodput_counts_only_answers_within_bounds() -> None:
    document = make_document(1.5)
    strict = document.workload.model_copy(update={"tpot_bound": 0.09})
    loose, tight = (
        [row.goodput for row in summarise(document.model_copy(update={"workload": work}))]
        for work in (document.workload, strict)
    )
    rows = summarise(document)
    assert loose == [
        pytest.approx(n / row.seconds) for n, row in zip((1, 6, 2, 12), rows, strict=True)
    ]
    assert tight == [
        pytest.approx(n / row.seconds) for n, row in zip((0, 5, 0, 10), rows, strict=True)
    ]


def test_categories_and_depths() -> None:
    document = make_document(1.5)
    found = category_speedup(document, "tree:8", "maths")
    assert found is not None
    assert found.value == pytest.approx(1.5)
    assert found.pairs == 4
    assert category_speedup(document, "tree:8", "cooking") is None
    blocks = document.blocks_of("tree:8", 1, 0.0)
    assert accepted_by_depth(blocks) == [(80, 56), (80, 32)]


def test_reports_hold_the_figures_and_say_what_was_replayed() -> None:
    earned, replayed = (markdown(make_document(1.5, replayed=r)) for r in (False, True))
    assert "1.500 [1.500, 1.500]" in earned
    assert REPLAYED not in earned
    assert f"tree:8 ({REPLAYED})" in replayed
    lines = list(csv.DictReader(io.StringIO(as_csv(make_document(1.5, replayed=True)))))
    assert [line["party"] for line in lines] == ["normal", "tree:8"] * 2
    assert float(lines[1]["speedup"]) == pytest.approx(1.5)
    assert [line["replayed"] for line in lines] == ["0", "1"] * 2


def test_a_document_survives_its_file(tmp_path: Path) -> None:
    document = make_document()
    run.write_all(document, tmp_path, charts=False)
    assert read_document(tmp_path / run.RESULT) == document
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.md",
        "result.csv",
        "result.json",
    ]


def test_charts_are_images(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run.write_all(make_document(replayed=True), tmp_path, charts=True)
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"panels.png", "categories.png", "clients.png", "trees.png"}
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"![{name}]({name})" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_published_schema_is_that_of_the_code() -> None:
    published = json.loads((ROOT / "docs" / "bench.schema.json").read_text(encoding="utf-8"))
    assert published == Document.model_json_schema()


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 2}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BenchError, match=r"other\.json is no result"):
        read_document(path)
    with pytest.raises(BenchError, match="cannot read"):
        read_document(tmp_path / "none.json")


def test_comparisons_find_what_became_slower() -> None:
    changes = {(c.party, c.clients): c for c in compare(make_document(1.5), make_document(1.2))}
    assert changes["normal", 1].rate.value == pytest.approx(1.0)
    assert not changes["normal", 1].is_regression(0.03)
    assert changes["tree:8", 1].rate.value == pytest.approx(0.8)
    assert changes["tree:8", 1].is_regression(0.03)
    assert not changes["tree:8", 1].is_regression(0.3)
    strangers = make_document().model_copy(update={"blocks": []})
    with pytest.raises(BenchError, match="in common"):
        compare(make_document(), strangers)
