"""The setup's pure parts: keys, progress, stamps, logged commands."""

from __future__ import annotations

import io
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import setup
from command import SetupError, run
from llama_wheel import find_wheel, read_cpu_flags, wheel_key
from progress import Progress, Task, format_seconds
from setup import Stage, digest_files, locked, read_stamp, write_stamp

LOCK = "llama-cpp-python==1.2.3 \\\n    --hash=sha256:abc\n"


def key(
    lock: str = LOCK,
    machine: str = "x86_64",
    flags: str = "avx2",
    compilers: str = "gcc 12",
    **environ: str,
) -> str:
    return wheel_key(lock, machine, flags, compilers, environ)


def test_key_names_the_version_and_is_stable() -> None:
    assert key().startswith("1.2.3-")
    assert key() == key()


def test_key_changes_with_all_that_changes_the_wheel() -> None:
    keys = [
        key(),
        key(lock=LOCK.replace("abc", "abd")),
        key(machine="aarch64"),
        key(flags="avx2 avx512f"),
        key(compilers="gcc 14"),
        key(CMAKE_ARGS="-DGGML_CUDA=on"),
        key(CFLAGS="-O1"),
    ]
    assert len(set(keys)) == len(keys)


def test_key_ignores_comments_and_the_rest_of_the_environment() -> None:
    assert key(lock="# written by hand\n" + LOCK, HOME="/root", CMAKE_ARGS="") == key()


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor : 0\nflags\t\t: sse2 avx fma\nflags\t\t: other\n", "avx fma sse2"),
        ("Features\t: neon asimd\n", "asimd neon"),
        ("nothing of the kind", ""),
    ],
)
def test_cpu_flags_are_sorted(text: str, flags: str) -> None:
    assert read_cpu_flags(text) == flags


@pytest.mark.parametrize(
    ("lines", "fraction"),
    [
        (["Collecting llama", "  [30/120] /usr/bin/c++ -c a.cpp"], 0.25),
        (["[ 40%] Building CXX object a.o", "[ 41%] Linking"], 0.41),
        (["[1/2] Re-checking globbed directories", "[3/300] cc"], 0.01),
        (["[200/300] cc", "[1/1] Installing", "[199/300] cc"], 2 / 3),
        (["a [7/8] in the middle", "[x/8] no", "[3/0] no", "[1/2] Building a test"], 0.0),
    ],
)
def test_progress_follows_the_longest_run(lines: list[str], fraction: float) -> None:
    progress = Progress()
    for line in lines:
        progress.read(line)
    assert progress.fraction == pytest.approx(fraction)


def test_task_adds_a_line_every_tenth_outside_a_terminal() -> None:
    stream = io.StringIO()
    with Task("building", stream) as task:
        for done in range(1, 101):
            task.read(f"[{done}/100] cc -c {done}.c")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "building ..."
    assert [line.split(" % ")[0].strip() for line in lines[1:-1]] == [
        str(percent) for percent in range(10, 101, 10)
    ]
    assert lines[-1] == "building ... 0.0 s"


def test_task_says_that_it_failed() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="no"), Task("building", stream):
        raise ValueError("no")
    assert stream.getvalue() == "building ... failed after 0.0 s\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (286.4, "4:46")])
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_digest_covers_names_contents_and_folders(tmp_path: Path) -> None:
    native = tmp_path / "build" / "native"
    (native / "build").mkdir(parents=True)
    digests = {digest_files(native)}
    (native / "a.cpp").write_text("1")
    digests.add(digest_files(native))
    (native / "a.cpp").write_text("2")
    digests.add(digest_files(native))
    (native / "a.cpp").rename(native / "b.cpp")
    digests.add(digest_files(native))
    (native / "build" / "b.o").write_text("3")
    digests.add(digest_files(native))
    assert len(digests) == 4
    assert digest_files(native, tmp_path / "missing") == digest_files(native)


def test_stamp_survives_damage(tmp_path: Path) -> None:
    stamp = tmp_path / "setup" / "stamp.json"
    assert read_stamp(stamp) == {}
    write_stamp(stamp, {"llama": "abc"})
    assert read_stamp(stamp) == {"llama": "abc"}
    stamp.write_text('{"llama": ')
    assert read_stamp(stamp) == {}


def test_broken_wheel_is_removed(tmp_path: Path) -> None:
    good = tmp_path / "good" / "a.whl"
    good.parent.mkdir()
    with zipfile.ZipFile(good, "w") as file:
        file.writestr("a.py", "x" * 1000)
    assert find_wheel(good.parent) == good
    good.write_bytes(good.read_bytes()[:-30])
    assert find_wheel(good.parent) is None
    assert not good.exists()


def test_run_logs_lines_and_reports_the_last_ones(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    lines: list[str] = []
    run([sys.executable, "-c", "print(1); print(2)"], log, lines.append)
    assert lines == ["1\n", "2\n"]
    code = "import sys; [print('line', n) for n in range(100)]; sys.exit(3)"
    with pytest.raises(SetupError) as caught:
        run([sys.executable, "-c", code], log)
    said = str(caught.value).splitlines()
    assert said[1:] == [*(f"line {n}" for n in range(70, 100)), f"the whole log: {log}"]


def test_locked_waits_for_nobody_when_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with locked(tmp_path):
            pass
    assert capsys.readouterr().out == ""


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages `first` and `second` in place of the real ones; holds what ran."""
    ran: list[str] = []

    def make_environment(task: Task) -> None:
        ran.append("environment")

    def make_stages(dev: bool) -> list[Stage]:
        return [
            Stage(name, name, (f"{name} {dev}", f"{name} True"), partial(work, name))
            for name in ("first", "second")
        ]

    def work(name: str, task: Task) -> None:
        ran.append(name)
        if "fail" in ran and name == "second":
            raise SetupError("no")

    monkeypatch.setattr(setup, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(setup, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(setup, "describe_environment", lambda: "3.11")
    monkeypatch.setattr(setup, "make_environment", make_environment)
    monkeypatch.setattr(setup, "make_stages", make_stages)
    return ran


def test_second_setup_does_nothing(done: list[str]) -> None:
    setup.set_up(dev=False)
    setup.set_up(dev=False)
    assert done == ["environment", "first", "second"]


def test_development_setup_also_serves(done: list[str]) -> None:
    setup.set_up(dev=False)
    setup.set_up(dev=True)
    setup.set_up(dev=False)
    assert done == ["environment", "first", "second", "first", "second"]


def test_setup_resumes_at_the_failed_stage(done: list[str]) -> None:
    done.append("fail")
    with pytest.raises(SetupError):
        setup.set_up(dev=False)
    done.clear()
    setup.set_up(dev=False)
    assert done == ["second"]


def test_setup_starts_anew_after_pip_was_killed(done: list[str]) -> None:
    setup.set_up(dev=False)
    done.clear()
    setup.UNFINISHED.touch()
    setup.set_up(dev=False)
    assert done == ["environment", "first", "second"]
