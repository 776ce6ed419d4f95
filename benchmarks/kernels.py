"""What the kernels of a compiled program read and write, from its text and its assembly.

A kernel is one instruction of the optimised program that does something on the device: a
fusion, a library's product or convolution, a copy. It reads its operands once and writes
its result once, but

- of an operand of which only a slice or some rows are looked at (`dynamic-slice`,
  `slice`, `gather`), as much as is looked at;
- of an operand that is updated in place (`dynamic-update-slice`), the update alone is
  written and nothing is read;
- scratch memory of a library's kernel is not counted, since it is not known how much of it
  is used.

Kernels in a loop count as often as it runs, where that is known; in the loop over steps,
whose bounds are arguments, they count once.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "bf16": 2, "c64": 8, "c128": 16}
_ELEMENT = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = "
    r"(?P<shape>\((?:[^()]|\([^()]*\))*\)|\S+) (?P<code>[\w\-]+)\((?P<rest>.*)$"
)
_CALLED = re.compile(r"(?:calls|body|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_KIND = re.compile(r"kind=(k\w+)")
_COMPILED = re.compile(r'deduplicated_name="([^"]+)"')

_FREE = {
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"),
    *("partition-id", "replica-id", "optimization-barrier", "add-dependency"),
}
_LOOKS = ("dynamic-slice", "slice", "gather")
_COLLECTIVES = (
    *("all-reduce", "all-gather", "all-to-all", "collective-permute"),
    *("reduce-scatter", "collective-broadcast", "ragged-all-to-all"),
)


class Instruction(NamedTuple):
    """One line of a program."""

    name: str
    shape: str
    code: str
    operands: tuple[str, ...]
    line: str
    is_root: bool


class Program(NamedTuple):
    """A compiled program: its computations by name, and which one is entered."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str


class Kernel(NamedTuple):
    """A kernel.

    Attributes:
      name: in the program.
      symbol: in the assembly.
      kind: its symbol without a number, or the library's function.
      shape: of its result, without layouts.
      read: bytes each time.
      written: likewise.
      times: how often it runs.
      is_loop: whether XLA wrote it as a loop over elements, where branches and single
        values are avoidable.
    """

    name: str
    symbol: str
    kind: str
    shape: str
    read: int
    written: int
    times: int
    is_loop: bool

    @property
    def bytes(self) -> int:
        """Read and written, all times together."""
        return (self.read + self.written) * self.times


def size(shape: str) -> int:
    """Bytes of a shape as programs write it, of all arrays of a tuple together."""
    total = 0
    for kind, axes in _ELEMENT.findall(shape):
        digits = re.search(r"\d+", kind)
        each = _BYTES.get(kind)
        if each is None:
            each = max(1, int(digits[0]) // 8) if digits else 0
        for axis in axes.split(","):
            each *= int(axis) if axis else 1
        total += each
    return total


def parse(text: str) -> Program:
    """A program from its text, `compiled.as_text()`."""
    found: dict[str, dict[str, Instruction]] = {}
    now: dict[str, Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            now = found.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            now = None
        elif now is not None and (match := _LINE.match(line)):
            operands = tuple(
                re.findall(r"%([\w.\-]+)", _arguments(match["rest"]))
                or re.findall(r"(?:^|, )([a-z][\w.\-]*)", _arguments(match["rest"]))
            )
            now[match["name"]] = Instruction(
                *(match["name"], match["shape"], match["code"]),
                *(operands, line, bool(match["root"])),
            )
    return Program(found, entry)


def _arguments(rest: str) -> str:
    """What stands before the bracket that ends the operands."""
    depth = 1
    for i, sign in enumerate(rest):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return rest[:i]
    return rest


# --- bytes ----------------------------------------------------------------------------


def _looked_at(inside: Mapping[str, Instruction], name: str) -> int:
    """How many bytes of a value a computation looks at."""
    total, whole = 0, size(inside[name].shape)
    for user in inside.values():
        if name not in user.operands:
            continue
        first = user.operands[0] == name
        if user.code in _LOOKS and first:
            total += size(user.shape)
        elif user.code == "dynamic-update-slice" and first:
            continue
        elif user.code == "bitcast":
            total += _looked_at(inside, user.name)
        else:
            return whole
    return min(total, whole)


def _put(inside: Mapping[str, Instruction], name: str) -> int:
    """How many bytes are written for a result."""
    made = inside[name]
    if made.code == "tuple":
        return sum(_put(inside, part) for part in made.operands)
    if made.code == "bitcast" and made.operands[0] in inside:
        return _put(inside, made.operands[0])
    if made.code == "dynamic-update-slice":
        return size(inside[made.operands[1]].shape)
    return size(made.shape)


def _traffic(program: Program, around: Mapping[str, Instruction], one: Instruction):
    """Bytes that an instruction reads and writes."""
    called = _CALLED.search(one.line)
    sizes = [size(around[o].shape) if o in around else 0 for o in one.operands]
    if one.code.startswith("fusion") and called and called[1] in program.computations:
        inside = program.computations[called[1]]
        for other in inside.values():
            if other.code == "parameter":
                at = int(_arguments(other.line.split(" parameter(")[1]))
                sizes[at] = min(sizes[at], _looked_at(inside, other.name))
        root = next((x for x in inside.values() if x.is_root), None)
        written = size(one.shape) if root is None else _put(inside, root.name)
        return sum(sizes), _without_scratch(one.shape, written, one.line)
    if one.code in _LOOKS:
        return size(one.shape), size(one.shape)
    if one.code == "dynamic-update-slice":
        return sizes[1], sizes[1]
    if one.code == "copy-start":
        return sizes[0], sizes[0]
    return sum(sizes), _without_scratch(one.shape, size(one.shape), one.line)


def _without_scratch(shape: str, written: int, line: str) -> int:
    """A library's kernel returns its scratch memory as a last array of bytes."""
    last = re.search(r", [su]8\[\d+\](?:\{[^}]*\})?\)$", shape)
    scratch = last is not None and "custom_call" in line
    return written - size(last[0]) if last and scratch else written


def _walk(program: Program, name: str, times: int) -> Iterator[Kernel]:
    inside = program.computations[name]
    for one in inside.values():
        # What is started is counted, not the waiting for it.
        if one.code in _FREE or one.code.endswith(("-done", "-update")):
            continue
        called = _CALLED.search(one.line)
        if one.code == "while":
            trips = _TRIPS.search(one.line)
            again = times * int(trips[1]) if trips else times
            yield from _walk(program, called[1], again)
        elif one.code == "conditional":
            yield from _heaviest(program, one, times)
        elif one.code in ("call", "async-start"):
            yield from _walk(program, called[1], times)
        else:
            yield _kernel(program, inside, one, times)


def _heaviest(program: Program, one: Instruction, times: int) -> list[Kernel]:
    """Of a choice, the branch that moves most."""
    names = [
        name.strip().lstrip("%")
        for many, single in _BRANCHES.findall(one.line)
        for name in (many or single).split(",")
    ]
    branches = [list(_walk(program, name, times)) for name in names]
    return max(branches, key=moved, default=[])


def _kernel(
    program: Program, around: Mapping[str, Instruction], one: Instruction, times: int
) -> Kernel:
    target = _TARGET.search(one.line) if one.code == "custom-call" else None
    kind = _KIND.search(one.line)
    read, written = _traffic(program, around, one)
    # Equal kernels are compiled once, and what is started later has its name here alone.
    compiled = _COMPILED.search(one.line)
    symbol = compiled[1] if compiled else one.name
    return Kernel(
        name=one.name,
        symbol=re.sub(r"\W", "_", symbol),
        kind=target[1] if target else re.sub(r"[._\d]+$", "", symbol),
        shape=re.sub(r"\{[^}]*\}", "", one.shape),
        read=read,
        written=written,
        times=times,
        is_loop=one.code.startswith("fusion")
        and ((kind is not None and kind[1] == "kLoop") or "concatenate" in one.name),
    )


def moved(kernels: Sequence[Kernel]) -> int:
    """Bytes that kernels read and write together."""
    return sum(kernel.bytes for kernel in kernels)


def of_program(program: Program) -> list[Kernel]:
    """All kernels of a program."""
    return list(_walk(program, program.entry, 1))


def of_step(program: Program) -> list[Kernel]:
    """The kernels of one step: of the loop that runs nobody knows how often.

    Raises:
      ValueError: there is no such loop.
    """
    steps = [
        list(_walk(program, _CALLED.search(one.line)[1], 1))  # type: ignore[index]
        for inside in program.computations.values()
        for one in inside.values()
        if one.code == "while" and not _TRIPS.search(one.line)
    ]
    if not steps:
        raise ValueError("the program has no loop over steps")
    return max(steps, key=moved)


def by_kind(kernels: Sequence[Kernel]) -> dict[str, tuple[int, int, int]]:
    """How often, bytes read and bytes written, by the kind of kernel; the most first."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in kernels:
        counts = found[one.kind]
        counts[0] += one.times
        counts[1] += one.read * one.times
        counts[2] += one.written * one.times
    most_first = sorted(found.items(), key=lambda item: -sum(item[1][1:]))
    return {kind: (n, read, written) for kind, (n, read, written) in most_first}


def convolutions(program: Program) -> int:
    """How many convolutions a program has, a library's included."""
    return sum(
        one.code == "convolution" or "__cudnn$conv" in one.line
        for inside in program.computations.values()
        for one in inside.values()
    )


def collectives(program: Program) -> dict[str, int]:
    """How often devices talk to each other in a program, by how they do."""
    found: dict[str, int] = defaultdict(int)
    for inside in program.computations.values():
        for one in inside.values():
            if (code := one.code.removesuffix("-start")) in _COLLECTIVES:
                found[code] += 1
    return dict(found)


# --- assembly -------------------------------------------------------------------------


class Assembly(NamedTuple):
    """What a kernel's assembly (PTX) says of its speed.

    Attributes:
      instructions: how many.
      branches: jumps among them.
      load: bytes of its widest load of global memory, 0 without any.
      store: likewise of its stores.
    """

    instructions: int
    branches: int
    load: int
    store: int

    @property
    def is_slow(self) -> bool:
        """Whether it branches, or loads or stores no more than 4 bytes at a time.

        Two jumps are a guard of its end. Such kernels reach a quarter of the bandwidth.
        """
        return self.branches > 2 or 0 < self.load <= 4 or 0 < self.store <= 4


_ENTRY = re.compile(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", re.DOTALL)


def assemblies(text: str) -> dict[str, Assembly]:
    """The kernels of a PTX file by name."""
    return {
        name: Assembly(
            instructions=len(re.findall(r"^\s+(?:@!?%p\d+\s+)?[a-z]", body, re.M)),
            branches=len(re.findall(r"\bbra\b", body)),
            load=_widest("ld", body),
            store=_widest("st", body),
        )
        for name, body in _ENTRY.findall(text)
    }


def _widest(access: str, body: str) -> int:
    found = re.findall(rf"\b{access}\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)", body)
    return max((int(bits) // 8 * int(many or 1) for many, bits in found), default=0)


def slow(
    kernels: Sequence[Kernel], code: Mapping[str, Assembly], share: float = 0.004
) -> list[tuple[Kernel, Assembly]]:
    """The heavy kernels that branch or move single values, with their assembly.

    Args:
      kernels: of a program or a step.
      code: the assembly by the names of kernels; of equal ones there is one.
      share: of all bytes that a kernel must move to be heavy.

    Returns:
      The heaviest first. Loops over elements alone: products and sums branch as they must.
    """
    bound = share * moved(kernels)
    # Copies of an equal kernel that the text names as if they were their own.
    alike = {(k.kind, k.shape): code[k.symbol] for k in kernels if k.symbol in code}
    found = []
    for one in sorted(kernels, key=lambda k: -k.bytes):
        own = code.get(one.symbol) or alike.get((one.kind, one.shape))
        if one.is_loop and one.bytes >= bound and own is not None and own.is_slow:
            found.append((one, own))
    return found
