"""`parallelize` as a class, for those who wrap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from torch_tp.group import GroupLike
from torch_tp.models.parallel import parallelize
from torch_tp.models.plan import Style

_PREFIX = "module."


class DistributedModelWrapper(nn.Module):
    """A model whose linears are cut over the ranks, in the place of the model.

    `DistributedModelWrapper(model)(x)` is `parallelize(model)(x)`. Attributes and methods that the wrapper has not
    itself are the model's; so are the names of its parameters and the keys of its state dict.

    Args:
        module: the model, which is changed in place and is `wrapper.module` afterwards.
        group, plan, rank, world_size, example, verify, strict: as of `parallelize`.

    Raises what `parallelize` raises.
    """

    module: nn.Module

    def __init__(
        self,
        module: nn.Module,
        group: GroupLike | None = None,
        plan: Mapping[str, Style] | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
        example: Any = None,
        verify: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "rank": rank,
            "world_size": world_size,
            "example": example,
            "verify": verify,
            "strict": strict,
        }
        self.module = parallelize(module, group, plan, **options)
        self.train(module.training)
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The model's parameters, under the names that they have there."""
        return self.module.named_parameters(*args, **kwargs)


def _without_prefix(wrapper: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + _PREFIX)]:
        state[prefix + key.removeprefix(prefix + _PREFIX)] = state.pop(key)


def _with_prefix(wrapper: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + _PREFIX + key.removeprefix(prefix)] = state.pop(key)
