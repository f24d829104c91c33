"""Every fate of a rank, and what the report of it names: the rank, its stack, and the collectives it had entered."""

from __future__ import annotations

import os
import signal
import time

import pytest

from conformance.ranks import BrokenGroup, RankGroup, RankSetup, StartFailed

GENEROUS = 5.0  # seconds beyond what the rules promise; the numbers themselves are the benchmark's


def fates(replies):
    return [reply.fate for reply in replies]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_returns(start, world):
    """One reply per rank, in order, and nothing but its payload."""
    replies = start(world).call(b"reduce echo=hi", 20)

    assert [reply.rank for reply in replies] == list(range(world))
    assert [reply.payload for reply in replies] == [f"{r}/{world} hi".encode() for r in range(world)]
    assert all((reply.fate, reply.entered, reply.stack, reply.output) == ("returned", (), "", "") for reply in replies)


def test_ranks_persist(start):
    """The same processes answer all commands."""
    group = start(2)

    first, second = (group.call(b"pid", 20) for _ in range(2))

    assert first == second
    assert tuple(int(reply.payload) for reply in first) == group.pids


def test_big_payloads_travel_both_ways(start):
    """Frames far above any buffer of the kernel."""
    replies = start(2).call(b"echo=" + b"x" * 3_000_000 + b" big=5000000", 20)

    assert [len(reply.payload) for reply in replies] == [5_000_000] * 2


def test_agreed_refusal_keeps_the_group(start):
    """All ranks answer Raised: no fault, the same processes go on."""
    group = start(2)
    before = group.pids

    replies = group.call(b"reduce refuse", 20)

    assert fates(replies) == ["raised"] * 2
    assert [reply.payload for reply in replies] == [b"refused"] * 2
    assert [reply.entered for reply in replies] == [("#1 all-reduce 4 B float32",)] * 2
    assert group.healthy
    assert group.pids == before


def test_disagreed_refusal_breaks_the_group(start):
    """Some returned: nobody knows what the next command would meet."""
    group = start(2)

    replies = group.call(b"1:refuse", 20)

    assert fates(replies) == ["returned", "raised"]
    assert not group.healthy
    with pytest.raises(BrokenGroup, match="rank 1 raised"):
        group.call(b"echo=hi", 20)


@pytest.mark.parametrize("how", ["refuse", "throw"])
def test_a_raise_while_others_wait(start, how):
    """The others are victims, with the collective they wait in; the one that raised never came to it."""
    group = start(4)
    began = time.monotonic()
    replies = group.call(b"reduce 2:%b reduce" % how.encode(), 60)

    assert time.monotonic() - began < 1 + GENEROUS
    assert fates(replies) == ["victim", "victim", "raised", "victim"]
    assert [len(reply.entered) for reply in replies] == [2, 2, 1, 2]
    assert replies[0].entered[-1] == "#2 all-reduce 4 B float32"
    assert "all_reduce" in replies[3].stack
    assert replies[2].payload == (b"refused" if how == "refuse" else None)
    assert ("ArithmeticError: thrown by the handler" in replies[2].stack) == (how == "throw")


def test_a_slow_agreement_is_still_one(start):
    """Ranks that have entered no collective wait for nobody; a busy machine may just be late to run them."""
    group = start(2)

    assert fates(group.call(b"1:sleep=0.45 refuse", 60)) == ["raised"] * 2
    assert group.healthy


def test_an_escaped_exception_breaks_the_group_even_if_all_agree(start):
    """The handler did not mean it, so its state is not known."""
    group = start(2)

    assert fates(group.call(b"throw", 20)) == ["raised"] * 2
    assert not group.healthy


def test_leaving_by_sys_exit_is_an_exception_like_others(start):
    """SystemExit does not end a rank silently."""
    replies = start(1).call(b"leave", 20)

    assert fates(replies) == ["raised"]
    assert "SystemExit: 5" in replies[0].stack


@pytest.mark.parametrize(
    ("action", "end", "stack"),
    [
        ("kill", "killed by signal 9 (SIGKILL)", ""),
        ("exit=3", "exit code 3", ""),
        ("crash", "killed by signal 11 (SIGSEGV)", "in crash"),
    ],
)
def test_a_death_while_others_wait(start, action, end, stack):
    """Who died and how; the others say what they were in, as victims or by the error of their broken connection."""
    group = start(2)
    began = time.monotonic()
    replies = group.call(b"reduce 1:%b reduce" % action.encode(), 60)

    assert time.monotonic() - began < 1 + GENEROUS
    assert (replies[1].fate, replies[1].exit) == ("died", end)
    assert stack in replies[1].stack
    assert replies[0].fate in ("victim", "raised")
    assert "all_reduce" in replies[0].stack
    assert [len(reply.entered) for reply in replies] == [2, 1]


def test_a_death_that_nobody_waits_for(start):
    """The others returned, and keep what they answered."""
    replies = start(2).call(b"1:exit=0 echo=hi", 20)

    assert fates(replies) == ["returned", "died"]
    assert (replies[0].payload, replies[1].exit) == (b"0/2 hi", "exit code 0")


@pytest.mark.parametrize(
    ("command", "answered", "frame"),
    [
        (b"1:sleep=600 reduce", False, "in sleep"),
        (b"1:spin reduce", False, "in spin"),
        (b"0:reduce", True, ""),  # rank 1 skips the collective and returns
        (b"1:stop reduce", False, None),  # a stopped process cannot show a stack
    ],
)
def test_a_hang(start, command, answered, frame):
    """Those that have not answered by the deadline hung, each with its stack; one that has answered is no suspect."""
    group = start(2)
    began = time.monotonic()
    replies = group.call(command, 0.5)

    assert 0.5 <= time.monotonic() - began < 1.5 + GENEROUS
    assert fates(replies) == ["hung", "returned" if answered else "hung"]
    assert "all_reduce" in replies[0].stack
    assert frame is None or frame in replies[1].stack
    assert [len(reply.entered) for reply in replies] == [1, 0]


def test_stacks_end_at_the_handler(start):
    """Frames of the pool itself say nothing about the fault."""
    (reply,) = start(1).call(b"sleep=600", 0.3)

    assert "handlers.py" in reply.stack
    assert "conformance/ranks" not in reply.stack


def test_what_a_rank_printed_is_in_the_report_of_trouble(start):
    """The tail of both streams, of this command alone."""
    group = start(2)
    group.call(b"say=earlier", 20)

    replies = group.call(b"0:say=now 1:flood=100000 1:kill", 20)

    assert replies[0].output == "now\nand on stderr\n"
    assert replies[1].output.endswith("xxx" + "the end\n")
    assert len(replies[1].output) < 10_000


def test_thousands_of_log_lines_cannot_block_a_rank(start):
    """The latest lines survive, and the trail says how many did not."""
    (reply,) = start(1).call(b"chatter=100000 refuse", 20)

    assert reply.fate == "raised"
    assert reply.entered[-1] == "line 99999"
    assert "earlier lines dropped" in reply.entered[0]
    assert len(reply.entered) >= 500


def test_death_between_commands_is_noticed_before_the_next(start):
    """The next command is not blamed for it."""
    group = start(2)
    os.kill(group.pids[1], signal.SIGKILL)
    time.sleep(0.3)

    assert not group.healthy
    assert group.fault == "died between commands: rank 1 (killed by signal 9 (SIGKILL))"


def test_subgroups_are_made_at_start(start):
    """Each rank is handed those it is in, and the world, by the ranks they join."""
    group = start(4, subgroups=(((0, 1), (2, 3)), ((0, 2), (1, 3))))

    assert [reply.payload for reply in group.call(b"groups", 20)] == [
        b"(0, 1)=1 (0, 1, 2, 3)=6 (0, 2)=2",
        b"(0, 1)=1 (0, 1, 2, 3)=6 (1, 3)=4",
        b"(0, 1, 2, 3)=6 (0, 2)=2 (2, 3)=5",
        b"(0, 1, 2, 3)=6 (1, 3)=4 (2, 3)=5",
    ]


def test_handlers_may_make_groups_later(start):
    """The rendezvous stays usable for as long as the ranks live."""
    assert [reply.payload for reply in start(2).call(b"new_group", 20)] == [b"1.0"] * 2


def test_a_handler_that_cannot_be_made_stops_the_start(setup_of):
    """The error says which rank, and why, with the traceback of the factory."""
    with pytest.raises(StartFailed, match=r"(?s)rank 1 raised.*No module named 'no_such_module'") as caught:
        RankGroup.start(setup_of(2, "no_such_module:factory"))

    assert [reply.fate for reply in caught.value.replies] == ["raised"] * 2


def test_a_start_that_hangs_ends_at_its_deadline(setup_of):
    """One rank waits in its factory for ever."""
    with pytest.raises(StartFailed, match=r"(?s)rank 1 hung.*in stuck_on_rank_1"):
        RankGroup.start(setup_of(2, "handlers:stuck_on_rank_1"), deadline=1.0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"world": 0}, "world=0"),
        ({"handler": "module"}, "package.module:factory"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"subgroups": (((0, 2),),)}, r"subgroup \(0, 2\)"),
    ],
)
def test_a_wrong_setup_says_what_is_wrong(changes, text):
    """Before any process is started."""
    with pytest.raises(ValueError, match=text):
        RankSetup(**({"world": 2, "handler": "module:factory"} | changes))


def test_a_deadline_beyond_that_of_torch_is_refused(start):
    """Or torch would end collectives before the group does."""
    with pytest.raises(ValueError, match="deadline=7200"):
        start(1).call(b"echo=hi", 7200)
