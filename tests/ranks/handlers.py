"""Handlers for the tests of the pool, each misbehaving in its own way. Imported inside ranks only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from conformance.ranks.values import Context, Raised


def script(context: Context):
    """A command is words: `RANK:ACTION` is for one rank, `ACTION` for all; the last answer is returned."""
    actions = Actions(context)

    def handle(command: bytes) -> bytes | Raised:
        result: bytes | Raised = b""
        for word in command.decode().split():
            who, _, action = word.rpartition(":")
            if who in ("", str(context.rank)):
                name, _, argument = action.partition("=")
                result = getattr(actions, name)(*([argument] if argument else []))
                if isinstance(result, Raised):
                    return result
        return result

    return handle


class Actions:
    def __init__(self, context: Context) -> None:
        self.context = context
        self.collectives = 0

    def echo(self, text: str) -> bytes:
        return f"{self.context.rank}/{self.context.world} {text}".encode()

    def reduce(self) -> bytes:
        x = torch.tensor([float(self.context.rank + 1)])
        self.collectives += 1
        self.context.log(f"#{self.collectives} all-reduce 4 B float32")
        dist.all_reduce(x)
        return str(x.item()).encode()

    def refuse(self) -> Raised:
        return Raised(b"refused")

    def throw(self) -> bytes:
        raise ArithmeticError("thrown by the handler")

    def kill(self) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def exit(self, code: str) -> bytes:
        os._exit(int(code))

    def crash(self) -> bytes:
        return bytes(ctypes.string_at(0))

    def sleep(self, seconds: str) -> bytes:
        time.sleep(float(seconds))
        return b"awake"

    def spin(self) -> bytes:
        while True:
            pass

    def say(self, text: str) -> bytes:
        print(text)
        os.write(2, b"and on stderr\n")
        return b""

    def flood(self, size: str) -> bytes:
        sys.stdout.write("x" * int(size) + "the end\n")
        return b""

    def chatter(self, lines: str) -> bytes:
        for i in range(int(lines)):
            self.context.log(f"line {i}")
        return b""

    def big(self, size: str) -> bytes:
        return bytes(int(size))

    def pid(self) -> bytes:
        return str(os.getpid()).encode()

    def leave_soon(self) -> bytes:
        """Answers, and dies a moment later."""
        signal.signal(signal.SIGALRM, lambda *_: os._exit(7))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return b"bye"

    def leave(self) -> bytes:
        sys.exit(5)

    def stop(self) -> bytes:
        os.kill(os.getpid(), signal.SIGSTOP)
        return b"continued"

    def groups(self) -> bytes:
        """The sum of the ranks of each group, by an all-reduce in it."""
        sums = []
        for ranks, group in sorted(self.context.groups.items()):
            x = torch.tensor([self.context.rank])
            dist.all_reduce(x, group=group)
            sums.append(f"{ranks}={x.item()}")
        return " ".join(sums).encode()

    def new_group(self) -> bytes:
        x = torch.tensor([float(self.context.rank)])
        dist.all_reduce(x, group=dist.new_group([0, 1]))
        return str(x.item()).encode()

    def state(self) -> bytes:
        """What a rank is as a process, as lines of NAME VALUE."""
        watched = ("jax", "hypothesis", "pytest", "_pytest", "xdist", "execnet", "spec", "torch_tp")
        main = sys.modules["__main__"]
        policies = {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}
        facts = {
            "modules": ",".join(name for name in watched if name in sys.modules) or "none",
            "main": str(getattr(main, "__file__", None)),
            "batch": str(policies == {os.SCHED_BATCH}),
            "interface": os.environ["GLOO_SOCKET_IFNAME"],
            "threads": str(torch.get_num_threads()),
            "stdin": os.readlink("/proc/self/fd/0"),
            "read": repr(sys.stdin.read()),
            "argv": ",".join(sys.argv),
            "option": self.context.options.get("option", "none"),
            "environment": os.environ.get("RANKS_TEST_LATE", "none"),
        }
        return "\n".join(f"{name} {value}" for name, value in facts.items()).encode()


def stuck_on_rank_1(context: Context):
    if context.rank == 1:
        time.sleep(600)
    return script(context)


def with_pytest(context: Context):
    import pytest  # noqa: F401 - imported to be found out

    return script(context)
