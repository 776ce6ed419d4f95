"""Every public name is documented: what it is, each argument, each field."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import flax.linen as nn
import pytest

import lottery_jax


def modules():
    found = [lottery_jax]
    for info in pkgutil.walk_packages(lottery_jax.__path__, "lottery_jax."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            # By its full name: a package may give a function the name of a module.
            found.append(importlib.import_module(info.name))
    return found


def public(module):
    """Functions and classes that a module defines, and their public methods."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(thing):
            yield f"{module.__name__}.{name}", thing
        elif inspect.isclass(thing):
            yield f"{module.__name__}.{name}", thing
            for own, method in vars(thing).items():
                method = getattr(method, "fget", method)
                if inspect.isfunction(method) and not own.startswith("_"):
                    yield f"{module.__name__}.{name}.{own}", method


def fields_of(thing):
    if thing.__module__.startswith("lottery_jax.convolution."):
        return []  # sizes of one geometry, explained where they stand
    if dataclasses.is_dataclass(thing):
        names = [f.name for f in dataclasses.fields(thing)]
        inherited = {"name", "parent"} if issubclass(thing, nn.Module) else set()
        return [n for n in names if not n.startswith("_") and n not in inherited]
    return list(getattr(thing, "_fields", ()))


def section(text, title):
    """The names that a section of a docstring explains; None without the section."""
    match = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)*)", inspect.cleandoc(text), re.M)
    if match is None:
        return None
    entries = re.findall(r"^  (\*{0,2}\w[\w, *]*):", match[1], re.M)
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def undocumented(name, thing):
    """What is missing of the documentation of one name."""
    text = thing.__doc__ or ""
    if not text or text.startswith(f"{getattr(thing, '__name__', '')}("):
        yield f"{name} has no docstring"
        return
    if inspect.isclass(thing):
        if fields := fields_of(thing):
            there = section(text, "Attributes") or set()
            # Few words may say more than a list; a list that is there is complete.
            if there and (missing := set(fields) - there):
                yield f"{name}: no word of the fields {sorted(missing)}"
            elif not there and len(fields) > 2:
                yield f"{name}: no section Attributes"
        return
    parameters = [p for p in inspect.signature(thing).parameters if p != "self"]
    named = section(text, "Args")
    if named is not None and set(parameters) != named:
        yield f"{name}: Args are {sorted(named)}, parameters {sorted(parameters)}"
    if named is None and len(parameters) > 4:
        yield f"{name}: no section Args for {parameters}"


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_public_names_are_documented(module):
    assert module.__doc__, "a module says what it is for"
    missing = [text for own in public(module) for text in undocumented(*own)]
    assert not missing, "\n".join(missing)


def test_the_check_can_fail():
    def bare(a, b):
        pass

    def stale(a, b):
        """Does.

        Args:
          a: one.
          c: gone.
        """

    assert list(undocumented("bare", bare)) == ["bare has no docstring"]
    assert "['a', 'c']" in next(undocumented("stale", stale))


def test_the_face_is_grouped_and_whole():
    """What a newcomer looks for is there under its short name."""
    core = ("masks", "scores", "prune", "schedules", "transforms", "dynamic", "trees")
    studies = ("train", "imp", "connectivity", "training", "transfer", "Where")
    trained = ("Task", "tasks", "models", "data", "convolution")
    remains = ("tickets", "checkpoints", "records", "plots", "compact", "verdicts")
    remains += ("pytorch",)
    for name in (*core, *studies, *trained, *remains):
        assert getattr(lottery_jax, name).__doc__, name
