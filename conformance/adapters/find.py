"""From the text after --impl to an adapter."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from conformance.adapters.protocol import ADAPTER_CONTRACT, KNOWN_CONTRACTS, Adapter, NoSuchAdapter
from spec.faults import FAULTS
from spec.vocabulary import LAYERS, PROCEDURES

OURS: Final = {
    "torch_tp": "conformance.adapters.torch_tp:TorchTp",
    "dtensor": "conformance.adapters.dtensor:DTensorStyles",
    "megatron": "conformance.adapters.megatron:Megatron",
    "fairscale": "conformance.adapters.fairscale:Fairscale",
    "nanotron": "conformance.adapters.nanotron:Nanotron",
    "nanotron-async": "conformance.adapters.nanotron:NanotronAsync",
    "deepspeed": "conformance.adapters.deepspeed:DeepSpeed",
    "jax-shard-map": "conformance.adapters.jax_shard_map:ShardMap",
    "jax-jit": "conformance.adapters.jax_jit:Jit",
    "numpy": "conformance.adapters.simulated:Simulated",
}
# Those that run in the process that asks, so that nothing need be imported to know it.
CONTROLLERS: Final = ("numpy",)
_METHODS: Final = ("declare", "declines", "open")
_FLAGS: Final = ("bias", "gather_output", "skip_bias_add", "input_is_parallel", "reduce_output")
# What an adapter may name, by its attribute: a word that is none would decline, or accept, nothing.
_WORDS: Final = {
    "layers": LAYERS,
    "flags": _FLAGS,
    "procedures_declined": tuple(PROCEDURES),
    "accepts": tuple(FAULTS),
}


def find(name: str) -> Adapter:
    """The adapter of an implementation, made.

    Raises:
        NoSuchAdapter: unknown name, failing import, no such class, a contract of another version, or a method that is
            missing.
    """
    module_name, colon, class_name = OURS.get(name, name).rpartition(":")
    if not colon and name.endswith(".py"):
        raise NoSuchAdapter(f"--impl {name}: which class of the file? --impl {name}:Class")
    if not colon:
        raise NoSuchAdapter(
            f"--impl {name}: unknown; it is one of {', '.join(OURS)}, package.module:Class, or path/to/file.py:Class"
        )
    module = _module(name, module_name)
    try:
        made = getattr(module, class_name)()
    except AttributeError as error:
        if hasattr(module, class_name):
            raise NoSuchAdapter(f"--impl {name}: making {class_name} raised {error!r}") from error
        raise NoSuchAdapter(f"--impl {name}: {module_name} has no class {class_name}") from None
    except Exception as error:
        raise NoSuchAdapter(f"--impl {name}: {class_name}() raised {type(error).__name__}: {error}") from error
    try:
        for requirement in getattr(made, "requires", ()):
            requirement.check()
    except NoSuchAdapter as error:
        raise NoSuchAdapter(f"--impl {name}: {error}") from None
    stated = getattr(made, "contract", ADAPTER_CONTRACT)
    if type(stated) is not int or stated not in KNOWN_CONTRACTS:
        raise NoSuchAdapter(
            f"--impl {name}: {class_name} states contract = {stated!r}; this suite knows version"
            f" {', '.join(map(str, KNOWN_CONTRACTS))} of the adapter contract, see docs/adapters.md"
        )
    missing = [method for method in _METHODS if not callable(getattr(made, method, None))]
    if missing:
        raise NoSuchAdapter(
            f"--impl {name}: {class_name} has no method {', '.join(missing)}; derive it from"
            " conformance.adapters.pytorch.TorchAdapter, or see conformance.adapters.protocol.Adapter"
        )
    for attribute, words in _WORDS.items():
        unknown = [str(word) for word in getattr(made, attribute, ()) if word not in words]
        if unknown:
            raise NoSuchAdapter(
                f"--impl {name}: {class_name}.{attribute} has {', '.join(unknown)}; it may have {', '.join(words)}"
            )
    return made


def _module(name: str, module_name: str) -> ModuleType:
    try:
        return _from_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except NoSuchAdapter:
        raise
    except Exception as error:
        raise NoSuchAdapter(f"--impl {name}: importing {module_name} raised {type(error).__name__}: {error}") from error


def _from_file(file_name: str) -> ModuleType:
    path = Path(file_name).resolve()
    if not path.is_file():
        raise NoSuchAdapter(f"--impl {file_name}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise NoSuchAdapter(f"--impl {file_name}: Python cannot load this file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module
