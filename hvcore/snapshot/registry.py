"""What a snapshot may consist of: nothing else is ever made from a file.

Classes are those that the modules of the machine, the core and the specifications define, but for what reaches out of the emulated machine.
Their objects may keep methods of one another for later; of the classes in `METHODS`, which hold more than emulated state, only those that
are named there.
"""

import dis
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import FunctionType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..spec.bits import Field, Layout

__all__ = ["FUNCTIONS", "METHODS", "TRANSIENT", "class_of", "constant_of", "field_kinds", "field_names", "function_of", "is_frozen",
           "method_of", "name_of", "name_of_constant", "name_of_function"]

_PACKAGES = ("machine", "machine.vtd", "vmm", "vmm.storage", "vmm.tiny", "spec")
_MODULES = ("attack.early", "attack.earlydrive", "outcome", "twoguests", "vmm.config")
_NEVER = frozenset({"machine.context", "machine.emulator", "machine.exceptions", "machine.gates", "machine.instructions",
                    "machine.memory", "machine.meter", "machine.rawhook", "machine.storewatch", "machine.vmexit"})
"""Modules whose objects stand for the emulator or for this process's memory."""

METHODS: dict[str, frozenset[str]] = {name: frozenset(methods.split()) for name, methods in {
    "booting.Booting": "_on_door _over _panic",
    "machine.cpu.Cpu": "watch_stores",
    "machine.disk.Disk": "",
    "machine.partition.Partition": "_interrupts_changed _sent",
    "machine.pc.Pc": "_idle _interrupts_changed _ioapic_message _message _now _sent _unit_message _unit_of _watch_stores pause reset "
                     "switch_off",
    "machine.schedule.Schedule": "_preempt",
    "twoguests.Residents": "",
    "vmm.core.Core": "",
}.items()}
"""Methods that may be kept for later, of classes that in others reach out of the emulated machine: to the emulator, files, this process."""

TRANSIENT: dict[str, frozenset[str]] = {name: frozenset(names.split()) for name, names in {
    "machine.clock.Clock": "alarm alarm_at",
    "machine.pc.Pc": "memory on_line",
    "machine.schedule.Schedule": "_spent",
    "machine.writes.WriteLog": "opens region top",
    "machine.disk.Disk": "_beneath",
    "vmm.core.Core": "gate progress",
}.items()}
"""Fields that belong to this process: they are left out, and whoever restores puts its own in their place."""

FUNCTIONS = ("machine.apic._nothing", "machine.apic._unheard", "machine.clock._nothing", "machine.cpu._nothing",
             "machine.interrupts._nothing", "machine.journal._unheard", "machine.pic._nothing", "machine.pic._unheard",
             "machine.vtd.unit._unheard", "machine.vtd.unit._unwatched")
"""Functions that may be remembered."""


@cache
def _classes() -> dict[str, type]:
    """Every class that an object in a snapshot may have, by its name."""
    found = {}
    for module in _module_names():
        for name, value in vars(importlib.import_module(f"hvcore.{module}")).items():
            if isinstance(value, type) and value.__module__ == f"hvcore.{module}" and _is_data(value):
                found[f"{module}.{name}"] = value
    return found


def _module_names() -> Iterator[str]:
    for package in _PACKAGES:
        home = importlib.import_module(f"hvcore.{package}")
        yield from (name for info in pkgutil.iter_modules(home.__path__) if not info.ispkg
                    for name in (f"{package}.{info.name}",) if name not in _NEVER)
    yield from _MODULES


def _is_data(cls: type) -> bool:
    return not (issubclass(cls, BaseException) or getattr(cls, "_is_protocol", False) or inspect.isabstract(cls))


def name_of(cls: type) -> str | None:
    """A class by its name in snapshots; None for one that no snapshot may hold."""
    name = _path(cls)
    return name if _classes().get(name) is cls else None


def _path(cls: type) -> str:
    return f"{cls.__module__.removeprefix('hvcore.')}.{cls.__qualname__}"


def class_of(name: object) -> type | None:
    """The class of a name; None where there is none, or none that a snapshot may hold."""
    return _classes().get(name) if isinstance(name, str) else None


@cache
def field_names(cls: type) -> tuple[str, ...]:
    """The names of all fields that this version's objects of a class can have, in order of the alphabet."""
    if issubclass(cls, tuple):
        return tuple(getattr(cls, "_fields", ()))
    names = {f.name for f in fields(cls)} if is_dataclass(cls) else set[str]()
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        names.update([slots] if isinstance(slots, str) else slots)
        names.update(name for function in vars(base).values() if isinstance(function, FunctionType) for name in _stored(function))
    properties = {n for n in names if isinstance(inspect.getattr_static(cls, n, None), property)}
    return tuple(sorted(names - properties - {"__dict__", "__weakref__"} - TRANSIENT.get(name_of(cls) or "", frozenset())))


_STORE = dis.opmap["STORE_ATTR"]


def _stored(function: FunctionType) -> Iterator[str]:
    """Names of attributes of its first parameter that a method assigns."""
    code = function.__code__
    if not code.co_argcount or _STORE not in code.co_code[::2]:
        return
    before = None
    for step in dis.get_instructions(code):
        if step.opname == "STORE_ATTR" and before is not None and before.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            loaded = before.argval[-1] if isinstance(before.argval, tuple) else before.argval
            if loaded == code.co_varnames[0]:
                yield step.argval
        before = step


@cache
def field_kinds(cls: type) -> dict[str, tuple[type, ...]]:
    """The types that fields of a dataclass or named tuple may have, as far as their annotations name classes; of other fields nothing."""
    if not is_dataclass(cls) and not issubclass(cls, tuple):
        return {}
    try:
        hints = get_type_hints(cls)
    except (NameError, TypeError):
        return {}
    return {name: kinds for name, hint in hints.items() if (kinds := _kinds(hint))}


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a hint stands for; none where it is no class or several of them."""
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        parts = [_kinds(part) for part in get_args(hint)]
        return tuple(kind for part in parts for kind in part) if all(parts) else ()
    kind = get_origin(hint) or hint
    if kind is None or not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or kind.__module__ == "collections.abc":
        return (type(None),) if kind is None else ()
    return (kind,)


def is_frozen(cls: type) -> bool:
    """Whether a class is a dataclass whose objects never change."""
    parameters = getattr(cls, "__dataclass_params__", None)
    return bool(parameters and parameters.frozen and is_dataclass(cls))


def method_of(cls: type, name: object) -> Callable[..., Any] | None:
    """The function behind a method that may be remembered of objects of a class."""
    path = _path(cls)
    if not isinstance(name, str) or name.startswith("__") or path not in METHODS and name_of(cls) is None:
        return None
    found = inspect.getattr_static(cls, name, None) if name in METHODS.get(path, {name}) else None
    return found if isinstance(found, FunctionType) else None


@cache
def _functions() -> dict[str, FunctionType]:
    homes = {name: importlib.import_module(f"hvcore.{name.rpartition('.')[0]}") for name in FUNCTIONS}
    return {name: function for name, home in homes.items()
            if isinstance(function := getattr(home, name.rpartition(".")[2], None), FunctionType)}


def name_of_function(function: FunctionType) -> str | None:
    """A function that may be remembered by its name; None for any other."""
    return next((name for name, known in _functions().items() if known is function), None)


def function_of(name: object) -> FunctionType | None:
    """The function of a name."""
    return _functions().get(name) if isinstance(name, str) else None


@cache
def _constants() -> dict[str, Any]:
    """Layouts of words that the specifications declare: one object each, which code compares by identity."""
    found: dict[str, Any] = {}
    for module in _module_names():
        if module.startswith("spec."):
            for name, value in vars(importlib.import_module(f"hvcore.{module}")).items():
                if isinstance(value, Layout | Field) and not isinstance(value, Enum):
                    found.setdefault(f"{module}.{name}", value)
    return found


@cache
def _names_of_constants() -> dict[int, str]:
    return {id(value): name for name, value in _constants().items()}


def name_of_constant(value: object) -> str | None:
    """A declaration by its name; None for what is none."""
    return _names_of_constants().get(id(value))


def constant_of(name: object) -> Any:
    """The declaration of a name; None where there is none."""
    return _constants().get(name) if isinstance(name, str) else None
