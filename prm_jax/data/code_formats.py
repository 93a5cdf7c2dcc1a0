"""Programming problems in the formats in which data sets publish them."""

import ast
import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prm_jax.data.problems import Problem, Prompt
from prm_jax.data.records import field, read_prompt, short, text
from prm_jax.errors import UserError
from prm_jax.verifiers.code import call_reference, io_reference
from prm_jax.verifiers.program_text import helpers_of
from prm_jax.verifiers.sandbox import CallTests, IOTests

Row = Mapping[str, Any]
KIND = "kind"
"""Field of a problem's metadata that says which verifier it needs: ``"code"`` or ``"math"``."""

_MAX_TESTS_BYTES = 64 << 20


def read_humaneval(row: Row, where: str) -> Problem:
    """HumanEval: ``prompt`` (the head of a function), ``test`` (``def check(candidate)``), ``entry_point``."""
    head = text(field(row, "prompt", where), f"{where}:prompt")
    name = text(field(row, "entry_point", where), f"{where}:entry_point")
    test = text(field(row, "test", where), f"{where}:test")
    tests = _that_assert(CallTests((test,), helpers_of(head, name), name), where)
    metadata = {KIND: "code"}
    if row.get("canonical_solution"):
        metadata["solution"] = head + text(row["canonical_solution"], f"{where}:canonical_solution")
    return Problem(head, call_reference(tests, prefix=head), _name(row, "task_id", where), metadata)


def read_mbpp(row: Row, where: str) -> Problem:
    """MBPP: ``text`` or ``prompt``, ``test_list``; optional ``test_setup_code``, ``test_imports``, ``code``."""
    task = text(row.get("text") or field(row, "prompt", where), f"{where}:text")
    asserts = _texts(field(row, "test_list", where), f"{where}:test_list")
    imports = _texts(row.get("test_imports") or [], f"{where}:test_imports")
    setup = "\n".join([*imports, str(row.get("test_setup_code") or "")]).strip()
    tests = _that_assert(CallTests(tuple(asserts), setup), where)
    # The tests name the function, and the published prompt shows them for that reason.
    prompt = f"{task}\nYour code should pass these tests:\n" + "\n".join(asserts)
    metadata = {KIND: "code"} | ({"solution": str(row["code"])} if row.get("code") else {})
    return Problem(prompt, call_reference(tests), _name(row, "task_id", where), metadata)


def read_apps(row: Row, where: str) -> Problem:
    """APPS and TACO: ``question``, ``input_output`` (JSON of inputs, outputs, fn_name), ``starter_code``."""
    question = text(field(row, "question", where), f"{where}:question")
    starter = str(row.get("starter_code") or "")
    document = _json(field(row, "input_output", where), f"{where}:input_output")
    answer = _reference(document, f"{where}:input_output")
    metadata = {KIND: "code"}
    solutions = _json(row.get("solutions") or "[]", f"{where}:solutions")
    if isinstance(solutions, list) and solutions:
        metadata["solution"] = str(solutions[0])
    prompt = question + (f"\n\nStart from this code:\n{starter}" if starter.strip() else "")
    name = "problem_id" if "problem_id" in row else "id"
    return Problem(prompt, answer, _name(row, name, where), metadata)


def read_code_contests(row: Row, where: str) -> Problem:
    """CodeContests: ``description``, ``public_tests``, ``private_tests``, ``generated_tests``, ``solutions``."""
    inputs: list[str] = []
    outputs: list[str] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        tests = row.get(name)
        if tests:
            inputs += _texts(field(tests, "input", f"{where}:{name}"), f"{where}:{name}.input")
            outputs += _texts(field(tests, "output", f"{where}:{name}"), f"{where}:{name}.output")
    metadata = {KIND: "code"}
    solutions = row.get("solutions") or {}
    python = [
        code
        for language, code in zip(solutions.get("language", []), solutions.get("solution", []), strict=False)
        if language == 3  # the data set's number for Python 3
    ]
    if python:
        metadata["solution"] = str(python[0])
    prompt = text(field(row, "description", where), f"{where}:description")
    answer = io_reference(_io(inputs, outputs, f"{where}:public_tests"))
    return Problem(prompt, answer, _name(row, "name", where), metadata)


def read_livecodebench(row: Row, where: str) -> Problem:
    """LiveCodeBench: ``question_content``, ``starter_code``, ``public_test_cases`` and ``private_test_cases``."""
    cases: list[Any] = []
    for name in ("public_test_cases", "private_test_cases"):
        if row.get(name):
            cases += _cases(row[name], f"{where}:{name}")
    kinds = {case.get("testtype", "stdin") for case in cases if isinstance(case, Mapping)}
    if len(kinds) != 1 or not kinds <= {"stdin", "functional"}:
        raise UserError(f"{where}: expected test cases of one testtype, stdin or functional, found {sorted(kinds)}")
    inputs = _texts([field(case, "input", where) for case in cases], f"{where}:input")
    outputs = _texts([field(case, "output", where) for case in cases], f"{where}:output")
    starter = str(row.get("starter_code") or "")
    if kinds == {"stdin"}:
        answer = io_reference(_io(inputs, outputs, where))
    else:
        metadata = _json(row.get("metadata") or "{}", f"{where}:metadata")
        name = text(field(metadata, "func_name", f"{where}:metadata"), f"{where}:metadata.func_name")
        arguments = [[_json(line, f"{where}:input") for line in given.splitlines()] for given in inputs]
        answer = _calls(name, arguments, [_json(out, f"{where}:output") for out in outputs], where)
    prompt = text(field(row, "question_content", where), f"{where}:question_content")
    prompt += f"\n\nStart from this code:\n{starter}" if starter.strip() else ""
    return Problem(prompt, answer, _name(row, "question_id", where), {KIND: "code"})


def read_prime(row: Row, where: str) -> Problem:
    """PRIME's training data: ``prompt`` (messages), ``ability`` (math or code), ``reward_model.ground_truth``."""
    prompt: Prompt = read_prompt(field(row, "prompt", where), f"{where}:prompt")
    kind = str(row.get("ability") or "")
    if kind not in ("math", "code"):
        raise UserError(f"{where}:ability: expected 'math' or 'code', found {kind!r}")
    model = field(row, "reward_model", where)
    truth = field(model, "ground_truth", f"{where}:reward_model")
    if kind == "math":
        answer = text(truth, f"{where}:reward_model.ground_truth")
    else:
        answer = _reference(_json(truth, f"{where}:reward_model.ground_truth"), f"{where}:reward_model.ground_truth")
    extra = row.get("extra_info") or {}
    index = extra.get("index") if isinstance(extra, Mapping) else None
    name = f"{row.get('data_source', 'prime')}/{index}" if index is not None else short(where)
    return Problem(prompt, answer, name, {KIND: kind})


READERS: Mapping[str, Callable[[Row, str], Problem]] = {
    "humaneval": read_humaneval,
    "mbpp": read_mbpp,
    "apps": read_apps,
    "taco": read_apps,
    "code_contests": read_code_contests,
    "livecodebench": read_livecodebench,
    "prime": read_prime,
}
"""Names of the formats."""

_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("humaneval", ("entry_point", "test")),
    ("mbpp", ("test_list",)),
    ("apps", ("input_output",)),
    ("code_contests", ("description", "public_tests")),
    ("livecodebench", ("question_content", "public_test_cases")),
    ("prime", ("reward_model", "ability")),
)


def find_format(row: Row, where: str) -> str:
    """The format of a row, by its fields.

    Raises:
      UserError: none has these fields.
    """
    for name, fields in _SIGNS:
        if all(item in row for item in fields):
            return name
    raise UserError(
        f"{where}: the format of the programming problems is not recognised by the fields {', '.join(map(str, row))}; "
        f"give format, one of {', '.join(READERS)}"
    )


def _reference(document: Any, where: str) -> str:
    """The reference of a ``{"inputs", "outputs", "fn_name"}`` document."""
    inputs, outputs = field(document, "inputs", where), field(document, "outputs", where)
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise UserError(f"{where}: inputs and outputs must be lists")
    name = document.get("fn_name") or document.get("func_name")
    if not name:
        return io_reference(_io([_as_text(x) for x in inputs], [_as_text(x) for x in outputs], where))
    # Some rows wrap the one output in a list of its own, as the published checkers allow.
    return _calls(text(name, f"{where}:fn_name"), inputs, outputs, where)


def _calls(name: str, arguments: Sequence[Any], outputs: Sequence[Any], where: str) -> str:
    """The reference of calls ``name(*arguments)`` with JSON values; a tuple equals a list of the same items."""
    if not name.isidentifier():
        raise UserError(f"{where}: {name!r} is not the name of a function")
    if len(arguments) != len(outputs):
        raise UserError(f"{where}: {len(arguments)} inputs and {len(outputs)} outputs")
    tests = []
    for given, expected in zip(arguments, outputs, strict=True):
        if not isinstance(given, list):
            raise UserError(f"{where}: the input of a call must be a list of arguments, found {str(given)[:60]}")
        tests.append(f"agree({name}(*{given!r}), {expected!r})")
    return call_reference(_checked(lambda: CallTests(tuple(tests), _AGREE), where))


_AGREE = """
def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value

def close(mine, theirs):
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(close, mine, theirs))
    if isinstance(mine, bool) or isinstance(theirs, bool):
        return mine is theirs
    if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)):
        return mine == theirs or abs(mine - theirs) <= 1e-6 * max(1, abs(theirs))
    return mine == theirs

def agree(found, expected):
    found, expected = plain(found), plain(expected)
    wrapped = isinstance(expected, list) and len(expected) == 1 and close(found, expected[0])
    assert close(found, expected) or wrapped, f"{found!r:.80}, expected {expected!r:.80}"
"""


def _io(inputs: list[str], outputs: list[str], where: str) -> IOTests:
    return _checked(lambda: IOTests(tuple(inputs), tuple(outputs)), where)


def _that_assert(tests: CallTests, where: str) -> CallTests:
    """The tests, unless neither they nor their setup can fail: every program would pass."""
    for node in (node for code in (*tests.tests, tests.setup) for node in ast.walk(ast.parse(code))):
        if isinstance(node, ast.Assert | ast.Raise):
            return tests
        called = node.func if isinstance(node, ast.Call) else None
        name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        if name.startswith(("assert", "raises", "fail")):
            return tests
    raise UserError(f"{where}: the tests assert nothing, so that every program would pass: {tests.tests[0]!r:.80}")


def _checked(make: Callable[[], Any], where: str) -> Any:
    try:
        return make()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _as_text(value: Any) -> str:
    """Input or output as text; some rows hold a list of lines."""
    if isinstance(value, str):
        return value
    return "\n".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


def _cases(value: Any, where: str) -> list[Any]:
    """Test cases: a list, JSON, or JSON that is pickled, compressed and in base 64, as some files hold them."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = _unpacked(value, where)
    if not isinstance(value, list):
        raise UserError(f"{where}: expected a list of test cases, found {type(value).__name__}")
    return value


def _unpacked(value: str, where: str) -> Any:
    try:
        decompressor = zlib.decompressobj()
        data = decompressor.decompress(base64.b64decode(value, validate=True), _MAX_TESTS_BYTES)
        if decompressor.unconsumed_tail:
            raise UserError(f"{where}: the test cases have more than {_MAX_TESTS_BYTES >> 20} MiB")
        found = _TextOnly(io.BytesIO(data)).load()
        return json.loads(found) if isinstance(found, str) else found
    except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{where}: neither JSON nor compressed test cases: {error}") from error


class _TextOnly(pickle.Unpickler):
    """Reads pickles of plain values; a file must not be able to name a function to be called."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _json(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON: {error}") from error


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: expected a list of texts, found {str(value)[:60]!r}")
    return list(value)


def _name(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else short(where)
