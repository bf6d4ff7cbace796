"""Reads a compiled program as XLA prints it: its messages between devices, its memory traffic, its reused arguments."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# They move nothing: the array is an argument or a part of another one, or what they call is counted instead.
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "iota",
)
SLICES = ("dynamic-slice", "slice", "gather")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?")


class Instruction(NamedTuple):
    """A line of a program: `name = shape opcode(arguments), attributes`."""

    name: str
    shape: str  # "f32[2,3]{1,0}", or a tuple of such
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Their names."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def collective(self) -> str | None:
        """The kind of message that it sends, if it sends one."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    def calls(self, attribute: str) -> str:
        """The computation that an attribute such as `body` names, or nothing."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""


class Computation:
    """A function of the program: instructions by their names, in their order, and which one is the result."""

    def __init__(self) -> None:
        self.instructions: dict[str, Instruction] = {}
        self.root = ""


class Messages(NamedTuple):
    """Messages of one kind in one step.

    Attributes:
      count: how often they are sent.
      bytes: of their results on one device, together.
    """

    count: int
    bytes: int


class CompiledText:
    """A compiled program.

    Args:
      text: what `compiled.as_text()` gives.
    """

    def __init__(self, text: str) -> None:
        self.header = text.partition("\n")[0]
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        current = Computation()
        for line in text.splitlines()[1:]:
            if begun := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = self.computations[begun[2]] = Computation()
                self.entry = begun[2] if begun[1] else self.entry
            elif instruction := _instruction(line):
                current.instructions[instruction.name] = instruction
                if line.lstrip().startswith("ROOT "):
                    current.root = instruction.name

    def executed(self, *, inside_fusions: bool = False) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction of one call, with its function and how often it is executed.

        Both branches of a condition are among them.

        Args:
          inside_fusions: also the instructions that are computed as parts of others.
        """
        yield from self._executed(self.entry, 1, inside_fusions)

    def collectives(self) -> dict[str, Messages]:
        """The messages between devices, by kind."""
        counts, sizes = Counter[str](), Counter[str]()
        for computation, instruction, times in self.executed(inside_fusions=True):
            if kind := instruction.collective:
                size = array_bytes(instruction.shape)
                if (
                    instruction.opcode.endswith("-start") and kind != "all-reduce"
                ):  # a pair: operands, results
                    size -= sum(array_bytes(shape) for shape in _operand_shapes(computation, instruction))
                counts[kind] += times
                sizes[kind] += times * size
        return {kind: Messages(counts[kind], sizes[kind]) for kind in sorted(counts)}

    def traffic(self) -> int:
        """Bytes that one call reads from a device's main memory and writes to it, without what caches save."""
        return sum(
            times * self._traffic(computation, instruction)
            for computation, instruction, times in self.executed()
        )

    def reused_arguments(self) -> set[int]:
        """Numbers of the arguments whose memory becomes that of a result."""
        _, _, aliases = self.header.partition("input_output_alias={")
        return {int(number) for number in re.findall(r"\{[\d, ]*\}: \((\d+),", aliases.partition(" }")[0])}

    def _executed(
        self, name: str, times: int, inside_fusions: bool
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        computation = self.computations.get(name, Computation())
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            match instruction.opcode:
                case "while":
                    repeated = times * self._repetitions(instruction)
                    yield from self._executed(instruction.calls("body"), repeated, inside_fusions)
                case "conditional":
                    for branch in _branches(instruction):
                        yield from self._executed(branch, times, inside_fusions)
                case "call":
                    yield from self._executed(instruction.calls("to_apply"), times, inside_fusions)
                case "fusion" | "async-start" if inside_fusions:
                    yield from self._executed(instruction.calls("calls"), times, inside_fusions)

    def _repetitions(self, loop: Instruction) -> int:
        """Steps of a loop: as XLA says, or the only number that its condition compares with; else 1."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self.computations.get(loop.calls("condition"), Computation())
        numbers = {
            int(instruction.arguments)
            for instruction in condition.instructions.values()
            if instruction.opcode == "constant" and re.fullmatch(r"\d+", instruction.arguments)
        }
        return max(numbers.pop(), 1) if len(numbers) == 1 else 1

    def _traffic(self, computation: Computation, instruction: Instruction) -> int:
        opcode = instruction.opcode
        if opcode in FREE or opcode.endswith("-done") or "AllocateBuffer" in instruction.attributes:
            return 0
        shapes = _operand_shapes(computation, instruction)
        if opcode == "copy-start":  # its shape has both places
            return main_memory_bytes(instruction.shape)
        if opcode in SLICES:
            return 2 * main_memory_bytes(instruction.shape)
        if opcode.endswith("-start"):  # its shape has the operands as well; of them it reads what it gives
            read = array_bytes(instruction.shape) - sum(map(array_bytes, shapes))
            return read + main_memory_bytes(instruction.shape) - sum(map(main_memory_bytes, shapes))
        if opcode == "dynamic-update-slice":
            return 2 * main_memory_bytes(shapes[1])
        if opcode != "fusion":
            return main_memory_bytes(instruction.shape) + sum(map(main_memory_bytes, shapes))
        return self._written(instruction, instruction.shape) + sum(
            self._read(instruction, number, shape) for number, shape in enumerate(shapes)
        )

    def _written(self, fusion: Instruction, shape: str) -> int:
        """Bytes that a fusion with a result of this shape writes: of an array changed in place only what changes."""
        inner = self.computations[fusion.calls("calls")]
        root = inner.instructions[inner.root]
        results = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        outer = [found[0] for found in ARRAY.finditer(shape)]
        if len(results) != len(outer):
            return main_memory_bytes(shape)
        total = 0
        for result, part in zip(results, outer, strict=True):
            while result.opcode == "bitcast":
                result = inner.instructions[result.operands[0]]
            if result.opcode == "fusion":
                total += self._written(result, part)
            elif result.opcode == "dynamic-update-slice" and "S(" not in part:
                total += array_bytes(_operand_shapes(inner, result)[1])
            else:
                total += main_memory_bytes(part)
        return total

    def _read(self, fusion: Instruction, number: int, shape: str) -> int:
        """Bytes of its operand of this number that a fusion reads: no more than the slices that it takes of it."""
        most = main_memory_bytes(shape)
        inner = self.computations[fusion.calls("calls")]
        names = {
            parameter.name
            for parameter in inner.instructions.values()
            if parameter.opcode == "parameter" and parameter.arguments == str(number)
        }
        sliced = 0
        for instruction in inner.instructions.values():  # operands come before their use
            places = [place for place, name in enumerate(instruction.operands) if name in names]
            if not places or (instruction.opcode == "dynamic-update-slice" and places == [0]):
                continue
            if instruction.opcode == "bitcast":
                names.add(instruction.name)
            elif instruction.opcode == "fusion":
                sliced += sum(self._read(instruction, place, shape) for place in places)
            elif instruction.opcode in SLICES and places == [0]:
                sliced += array_bytes(instruction.shape)
            else:
                return most
        return min(sliced, most)


def array_bytes(shape: str) -> int:
    """Bytes of all arrays of a shape, without padding."""
    return sum(_bytes(*found) for found in ARRAY.findall(shape))


def main_memory_bytes(shape: str) -> int:
    """The same, of those arrays that are not kept on the chip itself."""
    return sum(_bytes(*found) for found in ARRAY.findall(shape) if "S(" not in found[2])


def _bytes(kind: str, sizes: str, _: str) -> int:
    if kind == "pred":
        bits = 8
    else:
        found = re.match(r"[a-z]+(\d+)", kind)
        bits = int(found[1]) if found else 0
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _instruction(line: str) -> Instruction | None:
    begun = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if begun is None:
        return None
    rest = line[begun.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    rest = rest[len(opcode) :]
    end = _closing(rest)
    return Instruction(begun[1], shape, opcode, rest[1:end], rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the bracket with which the text begins is closed."""
    depth = 0
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if depth == 0:
            return place.start()
    return len(text) - 1


def _branches(condition: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", condition.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    return [condition.calls("true_computation"), condition.calls("false_computation")]


def _operand_shapes(computation: Computation, instruction: Instruction) -> list[str]:
    found = computation.instructions
    return [found[name].shape for name in instruction.operands if name in found]
