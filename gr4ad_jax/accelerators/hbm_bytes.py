"""Bytes that a compiled TPU program moves to and from the device's memory (HBM), off its text.

XLA's own figure, "bytes accessed", is another: it counts what lies on the chip (VMEM) as well, a
prefetch to the chip three times or more beside its use, and the body of a loop once. Here counts an
operand or a result that lies in the device's memory, once a run: of what a fusion slices, as much
as it slices; the body of a loop as often as it runs; a Pallas kernel by what it is given and gives.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "token": 0}
_ARRAY = re.compile(r"\b(pred|token|bf16|[sufc]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
# They name what is there, or end what another operation began.
_NOTHING = {
  "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all", "copy-done",
  "slice-done", "async-done", "optimization-barrier", "partition-id",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class _Operation:
  """A line of a program.

  Attributes:
    kind: such as 'fusion'.
    results: of each array its bytes, and whether it lies in the device's memory.
    operands: names.
    words: what stands between the brackets, and behind them.
    is_root: whether it is what its computation gives.
  """

  kind: str
  results: tuple[tuple[float, bool], ...]
  operands: tuple[str, ...]
  words: tuple[str, str]
  is_root: bool

  @property
  def size(self) -> float:
    """Bytes of all results, wherever they lie."""
    return sum(size for size, _ in self.results)

  def attribute(self, name: str) -> str | None:
    """The computation that an attribute names."""
    found = re.search(rf"\b{name}=%?([\w.\-]+)", self.words[1])
    return found[1] if found else None


_Program = dict[str, dict[str, _Operation]]


def by_scope(text: str) -> collections.Counter:
  """Bytes by the scope that an operation is named after: its `op_name`, '' where it has none.

  Args:
    text: of a compiled program, optimised and scheduled (`as_text` of JAX's `Compiled`).
  """
  program, entry = _parsed(text)
  moved: collections.Counter = collections.Counter()
  for operation, within, times in _running(program, entry, 1):
    scope = re.search(r'op_name="([^"]*)"', operation.words[1])
    moved[scope[1] if scope else ""] += times * _moved(operation, program, within)
  return moved


def _parsed(text: str) -> tuple[_Program, str]:
  """The computations of a program, and which of them is run. Raises ValueError for other text."""
  program: _Program = {}
  entry = ""
  here: dict[str, _Operation] = {}
  for line in text.splitlines():
    begins = _COMPUTATION.match(line)
    operation = _OPERATION.match(line)
    if operation:
      kind, rest = _split(operation[3])
      here[operation[2]] = _made(kind, rest, bool(operation[1]))
    elif begins and not line.startswith("HloModule"):
      here = program.setdefault(begins[2], {})
      entry = begins[2] if begins[1] else entry
  if not entry:
    raise ValueError("the text is no compiled program: it has no ENTRY")
  return program, entry


def _split(line: str) -> tuple[str, str]:
  """The type of what an operation gives, and the rest of its line."""
  if not line.startswith("("):
    kind, _, rest = line.partition(" ")
    return kind, rest
  end = _closing(line)
  return line[: end + 1], line[end + 2 :]


def _closing(line: str) -> int:
  """Where the first bracket closes."""
  depth = 0
  for place, letter in enumerate(line):
    depth += (letter == "(") - (letter == ")")
    if depth == 0 and letter == ")":
      return place
  return len(line)


def _made(given: str, rest: str, is_root: bool) -> _Operation:
  kind, _, more = rest.partition("(")
  end = _closing("(" + more) - 1
  inside = more[:end]
  return _Operation(
    kind, tuple(_arrays(given)), tuple(re.findall(r"%([\w.\-]+)", inside)),
    (inside, more[end + 1 :]), is_root,
  )  # fmt: skip


def _arrays(given: str) -> Iterator[tuple[float, bool]]:
  for dtype, sizes, layout in _ARRAY.findall(given):
    bits = _BITS.get(dtype) or int((re.search(r"\d+", dtype) or ["0"])[0])
    # A memory space, `S(1)`, is the chip's, or that of flags.
    yield math.prod(map(int, filter(None, sizes.split(",")))) * bits / 8, "S(" not in layout


def _running(
  program: _Program, name: str, times: int
) -> Iterator[tuple[_Operation, dict[str, _Operation], int]]:
  """The operations of a computation and of the loops in it, and how often each runs."""
  within = program[name]
  for operation in within.values():
    if operation.kind == "while":
      yield from _running(program, operation.attribute("body"), times * _trips(operation, program))
    elif operation.kind == "call":
      yield from _running(program, operation.attribute("to_apply"), times)
    elif operation.kind == "conditional":
      # One branch runs, and nothing says which: all count, rather too much than too little.
      for branch in _branches(operation.words[1]):
        yield from _running(program, branch, times)
    elif operation.kind not in _NOTHING:
      yield operation, within, times


def _branches(words: str) -> list[str]:
  """The computations of a conditional: two of a truth value, or a list of them."""
  listed = re.search(r"\bbranch_computations=\{([^}]*)\}", words)
  if listed:
    return re.findall(r"[\w.\-]+", listed[1])
  return re.findall(r"\b(?:true|false)_computation=%?([\w.\-]+)", words)


def _trips(loop: _Operation, program: _Program) -> int:
  """How often a loop runs: the number that its condition compares with."""
  inside = (one.words[0] for one in program[loop.attribute("condition")].values()
            if one.kind == "constant")  # fmt: skip
  return max((int(word) for word in inside if word.isdigit()), default=1)


def _moved(operation: _Operation, program: _Program, within: dict[str, _Operation]) -> float:
  """Bytes that an operation reads from the device's memory and writes there."""
  kind = operation.kind
  # The operand is listed among the results, for the end of the copy to know.
  if kind in ("copy-start", "slice-start"):
    pair = operation.results[:2]
    size = min(size for size, _ in pair)
    return sum(size for _, in_memory in pair if in_memory)
  # Arrays that are put side by side on the chip, or checked: nothing is moved.
  if kind == "custom-call" and "tpu_custom_call" not in operation.words[1]:
    return 0.0
  called = program.get(operation.attribute("calls") or "", {})
  read = 0.0
  for number, name in enumerate(operation.operands):
    source = within.get(name)
    if source is None or not all(in_memory for _, in_memory in source.results):
      continue
    size = source.size
    if called:
      size = min(size, _read(called, number, program))
    elif number == 0 and kind in _SLICES:
      size = operation.size
    elif number == 0 and kind == "dynamic-update-slice":
      size = 0.0
    read += size
  return read + _written(operation, called, within)


def _read(called: dict[str, _Operation], number: int, program: _Program) -> float:
  """Bytes that a fusion reads of an operand; infinite where it reads all of it."""
  for name, operation in called.items():
    if operation.kind == "parameter" and operation.words[0] == str(number):
      return _read_of(called, name, program)
  return math.inf


def _read_of(called: dict[str, _Operation], name: str, program: _Program) -> float:
  total = 0.0
  for reader, operation in called.items():
    for place, operand in enumerate(operation.operands):
      if operand != name:
        continue
      if place == 0 and operation.kind in _SLICES:
        total += operation.size
      elif operation.kind == "bitcast":
        total += _read_of(called, reader, program)
      elif operation.kind == "fusion":
        total += _read(program[operation.attribute("calls")], place, program)
      elif place != 0 or operation.kind != "dynamic-update-slice":
        return math.inf
  return total


def _written(
  operation: _Operation, called: dict[str, _Operation], within: dict[str, _Operation]
) -> float:
  """Bytes that an operation writes: of an array that is changed in place, what is put there."""
  made = [operation]
  inside = within
  if called:
    root = next(one for one in called.values() if one.is_root)
    made = [called[name] for name in root.operands] if root.kind == "tuple" else [root]
    inside = called
  total = 0.0
  for number, (size, in_memory) in enumerate(operation.results):
    one = made[number] if number < len(made) else operation
    while one.kind == "bitcast" and one.operands[0] in inside:
      one = inside[one.operands[0]]
    if one.kind == "dynamic-update-slice":
      size = min(size, inside[one.operands[1]].size)  # noqa: PLW2901
    total += in_memory * size
  return total
