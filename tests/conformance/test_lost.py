"""What a report says of lost ranks: each rank's stack once, the innermost call first, and no more."""

from __future__ import annotations

from pathlib import Path

import conformance
from conformance.reporting.failure.lost import lost_ranks
from conformance.reporting.failure.stacks import MOST_FRAMES, shown
from spec import Observation, Raised

ROOM = Path(conformance.__file__).parent
MINE = '  File "/home/me/mine.py", line 7 in forward'
TORCH = '  File "/usr/lib/python3/dist-packages/torch/nn/modules/module.py", line 1 in _call_impl'
OURS = f'  File "{ROOM}/adapters/torch_run.py", line 9 in forward'
OWN_RANKS = f'  File "{ROOM}/ranks/rank.py", line 9 in answer'
TRACEBACK = f"""Traceback (most recent call last):
  File "{ROOM}/ranks/rank.py", line 9, in answer
    result = handler(command)
             ^^^^^^^^^^^^^^^^
  File "/site-packages/torch/nn/modules/module.py", line 1, in _call_impl
    return forward_call(*args, **kwargs)
           ~~~~~~~~~~~~^^^^^^^^^^^^^^^^^
  File "/home/me/mine.py", line 7, in forward
    return self.sum(x)
  File "/site-packages/torch/_ops.py", line 2, in __call__
    return self._op(*args, **kwargs)
RuntimeError: shapes
differ
"""


def stack(*frames: str, head: str = "Current thread 0x1 (most recent call first):") -> str:
    return "\n".join([head, *frames])


def stripped(*frames: str) -> list[str]:
    return [frame.strip() for frame in frames]


def test_a_stack_keeps_what_is_the_layer_s() -> None:
    """The suite's own calls say nothing, nor do torch's on the way to the layer; those that the layer made last do."""
    assert shown(stack(TORCH, MINE, TORCH, OURS, OWN_RANKS)) == stripped(TORCH, MINE)
    assert shown(stack(OURS, MINE, OURS)) == stripped(MINE)


def test_where_nothing_is_the_layer_s_the_stack_is_shown_whole() -> None:
    assert shown(stack(OURS, OWN_RANKS)) == stripped(OURS, OWN_RANKS)
    assert shown(stack(TORCH, OURS)) == stripped(TORCH)
    assert shown("") == []


def test_a_traceback_is_turned_round() -> None:
    """So that all stacks of a report read alike; marks under the source are left out."""
    assert shown(TRACEBACK) == [
        'File "/site-packages/torch/_ops.py", line 2, in __call__',
        "  return self._op(*args, **kwargs)",
        'File "/home/me/mine.py", line 7, in forward',
        "  return self.sum(x)",
    ]


def test_of_a_chain_of_tracebacks_the_last_counts() -> None:
    chain = TRACEBACK.replace("mine.py", "before.py") + "\nDuring handling of it, another occurred:\n\n" + TRACEBACK
    assert shown(chain) == shown(TRACEBACK)


def test_a_text_that_is_no_stack_is_shown_as_it_is() -> None:
    """Another framework's, say."""
    assert shown("at Mine.forward\n\nat main") == ["at Mine.forward", "at main"]


def test_threads_are_told_apart_where_several_tell_something() -> None:
    other = stack(TORCH, head="Thread 0x2 (most recent call first):")
    assert shown(f"{other}\n\n{stack(MINE)}") == [
        *("Thread 0x2 (most recent call first):", TORCH.strip()),
        *("Current thread 0x1 (most recent call first):", MINE.strip()),
    ]
    crash = "Fatal Python error: Segmentation fault\n\n" + stack(MINE)
    assert shown(crash) == stripped(MINE)


def test_a_deep_stack_is_cut() -> None:
    assert shown(stack(*[MINE] * 40)) == [*stripped(*[MINE] * MOST_FRAMES), "and 30 more"]


def test_every_lost_rank_is_told_once() -> None:
    seen = (
        Observation(0, fate="victim", entered=("#1 all-reduce 4 B float32", "#1 waits"), stack=stack(TORCH, MINE)),
        Observation(1, fate="raised", raised=Raised(("RuntimeError",), "shapes\ndiffer", TRACEBACK), exit="printed"),
        Observation(2, fate="died", exit="exit code 3\nfirst words\n\nlast words"),
        Observation(3),
    )
    assert (
        "\n".join(lost_ranks(seen, (0, 2, 4, 6)))
        == """\
  collectives
           the ranks part at #1, their first collective
           rank 0 victim: entered #1 all-reduce 4 B float32, and waits in it
           rank 1 (global 2) raised: entered no collective, never joined #1
           rank 2 (global 4) died: entered no collective, never joined #1
           rank 3 (global 6) returned: entered no collective, never joined #1
  stacks   innermost call first
  rank 0   was stopped, since another rank had failed
             File "/usr/lib/python3/dist-packages/torch/nn/modules/module.py", line 1 in _call_impl
             File "/home/me/mine.py", line 7 in forward
  rank 1 (global 2) raised RuntimeError: shapes
           differ
             File "/site-packages/torch/_ops.py", line 2, in __call__
               return self._op(*args, **kwargs)
             File "/home/me/mine.py", line 7, in forward
               return self.sum(x)
           printed last
             printed
  rank 2 (global 4) died: exit code 3
             its stack is not known
           printed last
             first words
             last words"""
    )


def test_a_crash_shows_where_the_rank_stood() -> None:
    """And what it had raised before it died is not lost either."""
    seen = Observation(0, fate="died", exit="killed by signal 11 (SIGSEGV)", stack=stack(MINE))
    assert lost_ranks([seen], (0,))[-2:] == [
        "  rank 0   died: killed by signal 11 (SIGSEGV)",
        f"           {MINE}",
    ]


def test_a_long_text_is_cut_to_a_line() -> None:
    seen = Observation(0, fate="raised", raised=Raised(("RuntimeError",), "word " * 100, TRACEBACK))
    (line,) = (line for line in lost_ranks([seen], (0,)) if "raised RuntimeError" in line)
    assert line.endswith("word ...")
    assert len(line) < 220


def test_a_controller_that_is_lost_is_told_once() -> None:
    """It stands for all ranks."""
    seen = Observation(0, fate="hung", stack=stack(MINE))
    assert sum("did not finish" in line for line in lost_ranks((seen, seen), (0, 1))) == 1


def test_ranks_that_returned_need_no_telling() -> None:
    assert lost_ranks((Observation(0), Observation(1)), (0, 1)) == []
