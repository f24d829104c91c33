"""The checks of `verify_checks`, each an item of its own, the ranks started once; and how bounds are derived."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent))

import two_ranks
import verify_checks

from torch_tp.models.agreement import fingerprint
from torch_tp.models.passes import Pass, gradient_hooks, run_once
from torch_tp.models.rounding import Rounding, deviation, relative_error
from torch_tp.models.snapshot import Snapshot
from torch_tp.models.verdict import Bounds
from torch_tp.models.verification import senseless

CHECKS = sorted(name for name in vars(verify_checks) if name.startswith("check_"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return two_ranks.run(CHECKS, tmp_path_factory.mktemp("ranks"), "verify_checks")


@pytest.mark.parametrize("name", CHECKS)
def test_on_two_ranks(name: str, told: dict[str, list[str]]) -> None:
    failed = {f"rank {rank}": text for rank, text in enumerate(told[name]) if text}

    assert not failed, "\n".join(f"{rank}\n{text}" for rank, text in failed.items())


def test_a_deviation_is_that_of_the_worst_element() -> None:
    inf, nan = math.inf, math.nan

    assert deviation(torch.tensor([1.0, 5.0]), torch.tensor([1.5, 3.0])) == 2.0
    assert deviation(torch.tensor([inf, -inf, nan]), torch.tensor([inf, -inf, nan])) == 0.0
    assert deviation(torch.tensor([inf]), torch.tensor([-inf])) == inf
    assert deviation(torch.tensor([nan]), torch.tensor([0.0])) == inf
    assert deviation(torch.empty(0), torch.empty(0)) == 0.0
    # In bfloat16 itself the difference would round to 256.
    assert deviation(torch.tensor([257.0]).bfloat16(), torch.tensor([-1.0]).bfloat16()) == 257.0


@pytest.mark.parametrize(
    ("dtype", "terms", "expected"),
    [
        (torch.float64, 100, (100 + 4) * 2.0**-53),
        (torch.float32, 100, (100 + 4) * 2.0**-24),
        (torch.bfloat16, 100, 100 * 2.0**-24 + 4 * 2.0**-8),
        (torch.float16, 100, 100 * 2.0**-24 + 4 * 2.0**-11),
    ],
)
def test_narrow_dtypes_accumulate_in_float32(dtype: torch.dtype, terms: int, expected: float) -> None:
    found = relative_error(terms, 2, dtype)

    assert expected <= found <= expected * 1.02


def test_every_sum_of_products_is_off_by_its_error_and_nothing_else_is() -> None:
    linear, x = nn.Linear(3, 5), torch.randn(2, 3, requires_grad=True)
    y = linear(x)
    wanted = torch.autograd.grad(y, [x, linear.weight, linear.bias], torch.ones_like(y))
    with Rounding(2, 0):
        other = linear(x)
        found = torch.autograd.grad(other, [x, linear.weight, linear.bias], torch.ones_like(y))
        assert torch.equal(torch.relu(x), x.relu())

    magnitude = x.abs() @ linear.weight.abs().T + linear.bias.abs()
    error = magnitude.double() * relative_error(4, 2, torch.float32)
    off = (other.double() - y.double()).abs()
    # Twice the exact and the perturbed value are rounded to float32.
    assert ((off - error).abs() <= 2 * 2.0**-24 * y.abs().double() + 1e-12).all()
    assert (off > 0).all()
    for one, another in zip(found, wanted, strict=True):
        assert (one != another).all()


def test_a_bound_that_is_infinite_is_refused() -> None:
    dense = Pass({"output 0": torch.ones(1), "gradient of a": torch.ones(1)})

    assert senseless(dense, Bounds({"output 0": 1.0, "gradient of a": 1.0}, {})) == ""
    reason = senseless(dense, Bounds({"output 0": 1.0, "gradient of a": math.inf}, {}))
    assert reason == "the gradient of a of the dense model is not finite; give another example="


class Dropping(nn.Module):
    """Drops values by one function after the other; `kind` is the one that it uses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.recurrent = nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.5, batch_first=True)
        self.modules_of_dropout = nn.ModuleDict(
            {
                each.__name__: each(0.5)
                for each in (nn.Dropout, nn.Dropout1d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Dropout3d)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.kind)(x)

    def every_module(self, x: Tensor) -> Tensor:
        for each in self.modules_of_dropout.values():
            x = each(x.view(2, 3, 8, 1, 1)) if isinstance(each, nn.Dropout3d) else each(x)
        return x

    def functions(self, x: Tensor) -> Tensor:
        x = torch.dropout(F.dropout(x, p=0.5, training=self.training), 0.5, self.training)
        x = F.dropout(x + 0, 0.5, self.training, True)
        return torch.feature_dropout(torch.alpha_dropout(x, 0.5, self.training), 0.5, self.training)

    def fused_attention(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x, x, x, None, 0.5 if self.training else 0.0)
        return F.scaled_dot_product_attention(y, y, y, dropout_p=0.5 if self.training else 0.0)

    def attention_module(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0] + self.attention(x, x, x, need_weights=False)[0]

    def encoder(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def lstm(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        return self.recurrent(x)[0].sum() + self.recurrent(packed)[0].data

    def checkpoints(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda x: x + checkpoint(self.functions, x, use_reentrant=True), x, use_reentrant=True)
        return y + checkpoint(self.functions, x, use_reentrant=False)


@pytest.mark.parametrize(
    "kind",
    ["every_module", "functions", "fused_attention", "attention_module", "encoder", "lstm", "checkpoints"],
)
def test_in_training_mode_dropout_is_the_identity(kind: str) -> None:
    torch.manual_seed(0)
    model, call = Dropping(kind), ((torch.randn(2, 3, 8),), {})
    snapshot = Snapshot(model, values=True)

    trained, evaluated = (
        run_once(model, call, training=training, snapshot=snapshot, paths=()) for training in (True, False)
    )

    assert trained.raised is None
    assert evaluated.raised is None
    assert (trained.dropped, evaluated.dropped) == (True, False)
    assert trained.results.keys() == evaluated.results.keys()
    for name, value in trained.results.items():
        torch.testing.assert_close(value, evaluated.results[name])
    assert model.training
    assert model.modules_of_dropout["Dropout"].p == 0.5


def test_a_dropout_of_nothing_is_not_said() -> None:
    model, call = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)), ((torch.ones(1, 2),), {})

    found = run_once(model, call, training=True, snapshot=Snapshot(model, values=True), paths=())

    assert not found.dropped


def test_hooks_of_accumulated_gradients_are_silent_and_stay() -> None:
    model, calls = nn.Linear(2, 2), list[int]()
    model.weight.register_post_accumulate_grad_hook(lambda _: calls.append(1))
    call = ((torch.ones(1, 2),), {})
    snapshot = Snapshot(model, values=True)
    run_once(model, call, training=True, snapshot=snapshot, paths=(), silent=gradient_hooks(model))
    assert not calls

    model(torch.ones(1, 2)).sum().backward()

    assert calls == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_a_fingerprint_is_of_bytes_in_reading_order(dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, (5, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    first = fingerprint(x)

    assert fingerprint(x.t().contiguous().t()) == first
    assert fingerprint(torch.cat([x[:1], x])[1:]) == first
    for at in range(x.numel()):
        other = x.clone().reshape(-1)
        other[at] = 1 - other[at].to(torch.int64)
        assert fingerprint(other.view(5, 7)) != first
    assert fingerprint(x.roll(1, 1)) != first


def test_a_fingerprint_sees_pairs_of_changes_and_every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_tp.models.agreement._CHUNK", 4)
    x = torch.arange(1.0, 22.0)
    seen = {fingerprint(x)}
    for at in range(len(x)):
        for other in range(at):
            y = x.clone()
            y[[at, other]] *= -1
            seen.add(fingerprint(y))
            y = x.clone()
            y[[at, other]] = y[[other, at]]
            seen.add(fingerprint(y))

    assert len(seen) == 1 + 2 * len(x) * (len(x) - 1) // 2
    whole = fingerprint(x)
    monkeypatch.setattr("torch_tp.models.agreement._CHUNK", 1 << 20)
    assert fingerprint(x) == whole


def test_what_has_no_bytes_has_no_fingerprint() -> None:
    assert fingerprint(torch.empty(3, device="meta")) == ""
    assert fingerprint(torch.empty(0)) == ""
    assert fingerprint(torch.eye(2).to_sparse()) == ""
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor(2.0))
