"""The two wires below a group: frames, and the trail of a command."""

from __future__ import annotations

import os
import socket

import pytest

from conformance.ranks import host
from conformance.ranks.channel import Channel
from conformance.ranks.trail import Trail, read_trail


@pytest.fixture
def ends():
    near, far = socket.socketpair()
    pair = Channel(near, blocking=False), Channel(far, blocking=True)
    yield pair
    for end in pair:
        end.close()


@pytest.fixture
def file():
    fd = host.unnamed_file("trail")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 100])
def test_a_frame_arrives_as_it_was(ends, payload):
    """Both ways, empty ones too."""
    near, far = ends
    assert near.push(payload)
    assert far.receive() == payload
    far.send(payload)

    assert near.pull() == payload or near.pull() == payload


def test_the_near_end_never_blocks(ends):
    """Not when the other reads nothing, not when it sends half a frame."""
    near, far = ends
    assert not near.push(bytes(10_000_000))
    far._sock.send(b"\x05\0\0\0\0\0\0\0ab")

    assert near.pull() is None
    assert near.pull() is None
    assert not near.flush()


@pytest.mark.parametrize("operation", ["pull", "push"])
def test_a_lost_end_is_told(ends, operation):
    """As the end of the file, whichever way it is noticed."""
    near, far = ends
    far.close()

    with pytest.raises(EOFError):
        near.pull() if operation == "pull" else near.push(b"x")


def test_a_trail_holds_the_lines_of_one_command(file):
    """Longer earlier ones do not show through."""
    trail = Trail(file)
    trail.begin(1)
    for i in range(10):
        trail.add(f"a long line of the first command, number {i}")
    trail.begin(2)
    assert read_trail(file) == (2, ())
    trail.add("one")

    assert read_trail(file) == (2, ("one",))


def test_a_line_is_one_line_and_bounded(file):
    """Whatever is logged."""
    trail = Trail(file)
    trail.add("a\nb\0c \u2260 " + "x" * 10_000)
    trail.add("next")

    first, second = read_trail(file)[1]
    assert first.startswith(r"a b c \u2260 xxx")
    assert len(first) == 400
    assert second == "next"


def test_a_trail_that_grows_too_long_keeps_its_end(file):
    """And counts what it lost."""
    trail = Trail(file)
    for i in range(100_000):
        trail.add(f"line {i}")

    note, *lines = read_trail(file)[1]
    assert note == f"({100_000 - len(lines)} earlier lines dropped)"
    assert lines == [f"line {i}" for i in range(100_000 - len(lines), 100_000)]


def test_ranks_meet_in_a_private_directory_where_files_need_names(start, monkeypatch, tmp_path):
    """As on systems other than Linux; the directory is gone when the group is up."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(host, "LINUX", False)

    assert start(2).call(b"reduce", 60)[1].payload == b"3.0"
    assert list(tmp_path.iterdir()) == []
