"""The pool: ranks persist by setup, are replaced after every fault, and few groups are alive."""

from __future__ import annotations

import os
import signal
import time

import pytest

from conformance.ranks import RankPool


def pids(pool, setup):
    return [reply.payload for reply in pool.call(setup, b"pid", 60)]


def test_equal_setups_share_ranks(pool, setup_of):
    """Order and type of the options do not matter, their values do."""
    first = pids(pool, setup_of(2, options={"a": "1", "b": "2"}))

    assert pids(pool, setup_of(2, options={"b": "2", "a": "1"})) == first
    assert pids(pool, setup_of(2, options={"a": "1", "b": "3"})) != first


def test_at_most_so_many_groups_are_alive(pool, setup_of):
    """The one used longest ago makes room."""
    one, two, four = setup_of(1), setup_of(2), setup_of(4)
    first, second = pids(pool, one), pids(pool, two)
    assert pids(pool, one) == first
    pids(pool, four)

    assert pids(pool, one) == first
    assert pids(pool, two) != second


FAULTS = [b"1:refuse", b"1:throw", b"reduce 0:kill reduce", b"1:exit=3", b"0:reduce", b"throw"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_call_after_a_fault_is_right(pool, setup_of, fault):
    """On fresh ranks, that know nothing of the fault."""
    setup = setup_of(2)
    before = pids(pool, setup)
    pool.call(setup, fault, 0.5)

    assert [reply.payload for reply in pool.call(setup, b"reduce", 60)] == [b"3.0", b"3.0"]
    assert not set(pids(pool, setup)) & set(before)
    assert pool.died_idle == []


def test_agreed_refusals_keep_the_ranks(pool, setup_of):
    """Raised on all of them is an answer."""
    setup = setup_of(2)
    before = pids(pool, setup)
    pool.call(setup, b"refuse", 60)

    assert pids(pool, setup) == before


def test_discard_gives_fresh_ranks(pool, setup_of):
    """To ask again without what earlier commands may have left behind."""
    setup = setup_of(2)
    before = pids(pool, setup)
    pool.discard(setup)
    pool.discard(setup)

    assert pids(pool, setup) != before


@pytest.mark.parametrize("how", ["killed from outside", "by itself"])
def test_a_death_between_commands_is_told_and_not_blamed(pool, setup_of, how):
    """The next command runs on fresh ranks; the pool keeps a note."""
    setup = setup_of(2)
    if how == "by itself":
        pool.call(setup, b"1:leave_soon", 60)
    else:
        os.kill(int(pids(pool, setup)[1]), signal.SIGKILL)
    time.sleep(0.5)

    assert [reply.payload for reply in pool.call(setup, b"reduce", 60)] == [b"3.0", b"3.0"]
    assert len(pool.died_idle) == 1
    assert "rank 1" in pool.died_idle[0]
    assert ("exit code 7" if how == "by itself" else "SIGKILL") in pool.died_idle[0]


def test_a_pool_keeps_at_least_one_group():
    """Or it could not answer."""
    with pytest.raises(ValueError, match="limit=0"):
        RankPool(limit=0)
