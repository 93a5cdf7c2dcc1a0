"""Steps of texts and of their tokens: spans cover the text, and tokens agree with them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_jax import rl
from prm_jax.data import (
    StepSplitter,
    join_steps,
    step_ids_from_offsets,
    step_ids_from_separators,
    step_ids_from_text,
    token_starts,
)
from prm_jax.errors import UserError


def cut(text, *args, **options):
    """The steps as strings, joined by "|" for reading."""
    return "|".join(text[start:end] for start, end in StepSplitter(*args, **options)(text))


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("a\nb\n\nc", "newline", "a\n|b\n\n|c"),
        ("\n a\r\nb\n \n", "newline", "\n a\r\n|b\n \n"),
        ("a\nb\n \n\nc\n", "blank", "a\nb\n \n\n|c\n"),
        ("So:\nStep 1: x\nStep 2: y", "step_marker", "So:\n|Step 1: x\n|Step 2: y"),
        ("Step 1: x Step 2: y", "step_marker", "Step 1: x |Step 2: y"),
        ("## Step 1\nsee Step 3.\n**step 2** y", "step_marker", "## Step 1\nsee Step 3.\n|**step 2** y"),
        ("It is 3.14. Now 2! Done?", "sentence", "It is 3.14. |Now 2! |Done?"),
        ("1. Add, e.g. 2. Then 3.\n2. Stop.", "sentence", "1. Add, e.g. 2. |Then 3.\n|2. Stop."),
        ('He said "no." Then left.', "sentence", 'He said "no." |Then left.'),
        ("一。二！三", "sentence", "一。|二！|三"),
        ("a\n\nb", "whole", "a\n\nb"),
        ("  ", "newline", "  "),
        ("", "newline", ""),
    ],
)
def test_ways_of_splitting(text, how, expected):
    assert cut(text, how) == expected


def test_separators_patterns_functions_and_answer_markers():
    semicolon = {"tags": (";",)}
    assert cut("a;b;;c;", "tag", **semicolon) == "a;|b;;|c;"
    assert cut(";a;b", "tag", **semicolon) == ";a;|b"
    assert cut(";;", "tag", **semicolon) == ";;"
    assert cut("x ки\ny ки", "tag", tags=("ки",)) == "x ки|\ny ки"
    assert cut("a--b-c", "tag", tags=("-", "--")) == "a--|b-|c"  # the longest separator first
    assert cut("a;b#3", "tag", **semicolon, answer_markers=("#",)) == "a;|b|#3"
    assert cut("a;#3", "tag", **semicolon, answer_markers=("#",)) == "a;|#3"
    assert cut("a\nb\n#### 3", "newline", answer_markers=("####",)) == "a\n|b\n|#### 3"
    assert cut("#3", "tag", **semicolon, answer_markers=("#",)) == "#3"
    assert cut("a1b22c", "regex", pattern=r"\d+") == "a1|b22|c"
    assert cut("abc", "regex", pattern=r"x*") == "abc"  # empty matches end nothing
    assert cut("abcd", "function", function=lambda text: [0, 2, 3]) == "ab|c|d"


TEXTS = st.text(alphabet="ab ;#\n\r.1S\u00e9\u2014\U0001f600", max_size=30) | st.text(max_size=30)
SPLITTERS = [
    *(StepSplitter(how) for how in ("newline", "blank", "step_marker", "sentence", "whole")),
    StepSplitter("tag", tags=(";", "\n\n"), answer_markers=("#", "##")),
    StepSplitter("regex", pattern=r"[;.]\s*"),
]


@settings(deadline=None)
@given(TEXTS, st.sampled_from(SPLITTERS))
def test_spans_are_contiguous_and_cover_the_text(text, splitter):
    spans = splitter(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(a < b for a, b in spans)
    if len(spans) > 1:
        assert all(text[a:b].strip() for a, b in spans)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("splitter", SPLITTERS)
def test_long_texts_take_linear_time(splitter):
    for piece in (" ", "\n", " \n", ".", ". ", '."', "Step 1", "#", ";", "*", "\r", "1."):
        text = piece * 50_000
        assert splitter(text + "x")[-1][1] == len(text) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"how": "lines"}, "unknown splitter 'lines'; did you mean 'newline'"),
        ({"how": "tag"}, "needs the option 'tags'"),
        ({"how": "newline", "pattern": "x"}, "does not take the option 'pattern'"),
        ({"how": "regex", "pattern": "("}, "not a regular expression"),
        ({"how": "tag", "tags": ("",)}, "empty string"),
    ],
)
def test_bad_splitters(options, message):
    with pytest.raises(UserError, match=message):
        StepSplitter(**options)


def test_a_function_gives_offsets_or_steps():
    assert StepSplitter("function", function=lambda text: [0, np.int64(2)])("abcd") == [(0, 2), (2, 4)]
    assert StepSplitter("function", function=lambda text: text.splitlines(keepends=True))("a\nb") == [(0, 2), (2, 3)]
    for function, message in [
        (lambda text: [99], "offsets in"),
        (lambda text: [1.5], "returned 1.5"),
        (lambda text: [True], "returned True"),
        (lambda text: ["a", 1], "returned 'a'"),
        (lambda text: text.split("b"), "joined give 'ac' and not the text, 'abc'"),
    ]:
        with pytest.raises(UserError, match=message):
            StepSplitter("function", function=function)("abc")


def test_boundaries():
    assert StepSplitter("blank").boundaries == ("\n\n",)
    assert StepSplitter("tag", tags=(";", "|")).boundaries == (";", "|")
    assert StepSplitter("sentence").boundaries is None


def test_join_steps():
    text, spans = join_steps(["one", "two", "three"])
    assert text == "one\n\ntwo\n\nthree"
    assert [text[a:b] for a, b in spans] == ["one\n\n", "two\n\n", "three"]
    assert join_steps([]) == ("", [])


def test_token_that_straddles_a_boundary_counts_to_the_step_it_starts_in():
    # "ab;cd": the token ";c" ends step 0 and starts step 1.
    spans = StepSplitter("tag", tags=(";",))("ab;cd")
    _, starts = token_starts([b"ab", b";c", b"d", b""])
    np.testing.assert_array_equal(step_ids_from_offsets(spans, starts), [0, 0, 1, 1])


def test_step_inside_one_token_keeps_its_number():
    spans = StepSplitter("tag", tags=(";",))("a;b;c")
    _, starts = token_starts([b"a", b";b;", b"c"])
    np.testing.assert_array_equal(step_ids_from_offsets(spans, starts), [0, 0, 2])


def test_characters_spread_over_tokens_and_broken_bytes():
    pieces = [b"a", "\u2014".encode()[:1], "\u2014".encode()[1:], b"\xff", b"b", b"\xe2"]
    text, starts = token_starts(pieces)
    assert text == "a\u2014\ufffdb\ufffd" == b"".join(pieces).decode("utf-8", "replace")
    assert starts == [0, 1, 1, 2, 3, 4]


def test_empty_response_is_step_zero():
    np.testing.assert_array_equal(step_ids_from_offsets([], [0]), [0])


SEPARATOR, ANSWER = 1, 2
VOCABULARY = [b"", b";", b"#", b"a", b"b", b" ", b""]  # 0 pads, 6 ends


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), max_size=8), min_size=1, max_size=4), st.integers(0, 3))
def test_fast_path_equals_the_text(responses, prompt):
    """The path over separator ids gives what splitting the decoded text gives, padding and prompt apart."""
    width = prompt + 10
    tokens = np.zeros((len(responses), width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    tokens[:, :prompt] = SEPARATOR  # separators of the prompt must not count
    for row, ids in enumerate(responses):
        ids = [*ids, 6]
        tokens[row, prompt : prompt + len(ids)] = ids
        mask[row, prompt : prompt + len(ids)] = True
    splitter = StepSplitter("tag", tags=(";",), answer_markers=("#",))
    exact, num_steps, texts = step_ids_from_text(tokens, mask, VOCABULARY.__getitem__, splitter)
    fast = step_ids_from_separators(tokens, mask, [SEPARATOR], answer_ids=[ANSWER], blank_ids=[6])
    np.testing.assert_array_equal(fast, exact)
    assert fast.dtype == np.int32 and (fast[~mask] == -1).all()
    assert texts == [b"".join(VOCABULARY[i] for i in ids).decode() for ids in responses]
    np.testing.assert_array_equal(num_steps, np.where(num_steps > 0, exact.max(axis=1) + 1, 0))


def test_separators_of_several_tokens():
    # 7 8 is the separator; a lone 7 or 8 is content, and one cut off by the mask does not count.
    tokens = np.array([[3, 7, 8, 4, 7, 4, 8, 7, 8, 7, 8, 5], [3, 7, 8, 4, 0, 0, 0, 0, 0, 0, 0, 0]])
    mask = np.ones(tokens.shape, bool)
    mask[1, :2] = mask[1, 4:] = False
    np.testing.assert_array_equal(
        step_ids_from_separators(tokens, mask, [(7, 8)]),
        [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2], [-1, -1, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1]],
    )


def test_all_masked_row_and_short_rows():
    tokens = np.array([[1], [3]])
    mask = np.array([[False], [True]])
    np.testing.assert_array_equal(step_ids_from_separators(tokens, mask, [(1, 1)]), [[-1], [0]])


def test_process_bench_steps_survive_the_round_trip(data_dir):
    path = data_dir / "processbench" / "gsm8k.json"
    for row in json.loads(path.read_text())[:100]:
        text, spans = join_steps(row["steps"])
        assert len(spans) == len(row["steps"]) and spans[-1][1] == len(text)
        # Byte-level tokens of four bytes each: the first token of step k starts in step k or the one before.
        raw = text.encode()
        pieces = [raw[i : i + 4] for i in range(0, len(raw), 4)]
        decoded, starts = token_starts(pieces)
        ids = step_ids_from_offsets(spans, starts)
        assert decoded == text
        assert all(spans[k][0] <= start < spans[k][1] for k, start in zip(ids, starts, strict=True))


BYTE_SPLITTERS = [*SPLITTERS, StepSplitter("tag", tags=("ки",), answer_markers=("####",))]


def cut_bytes(text, cuts):
    """The UTF-8 bytes of a text as tokens, cut anywhere, characters included; an end-of-text token at the end."""
    raw = text.encode()
    at = sorted({0, len(raw), *(c % (len(raw) + 1) for c in cuts)})
    return [raw[a:b] for a, b in zip(at, at[1:], strict=False)]


def batch_of(pieces, prompt=2, padding=2):
    """One row [prompt][pieces, end of text][padding] over a vocabulary of these pieces; id 0 has no text."""
    table = [b"", *pieces]
    ids = [0] * prompt + list(range(1, len(pieces) + 1)) + [0] * (1 + padding)
    mask = np.zeros((1, len(ids)), bool)
    mask[0, prompt : prompt + len(pieces) + 1] = True
    return np.array([ids]), mask, table.__getitem__


@settings(deadline=None)
@given(TEXTS, st.sampled_from(BYTE_SPLITTERS), st.lists(st.integers(0, 99), max_size=12))
def test_every_token_has_the_step_it_starts_in_however_the_text_is_tokenised(text, splitter, cuts):
    tokens, mask, token_bytes = batch_of(cut_bytes(text, cuts))
    step_ids, num_steps, texts = step_ids_from_text(tokens, mask, token_bytes, splitter, special_ids=[0])
    spans = splitter(text)
    assert texts == [text] and num_steps[0] == len(spans)
    assert (step_ids[~mask] == -1).all()
    owner = [step for step, (a, b) in enumerate(spans) for _ in range(a, b)] + [max(len(spans) - 1, 0)]
    _, starts = token_starts([*cut_bytes(text, cuts), b""])
    np.testing.assert_array_equal(step_ids[mask], [owner[start] for start in starts])
    assert step_ids[mask][-1] == max(len(spans) - 1, 0)  # end of text belongs to the last step


@settings(deadline=None)
@given(TEXTS, st.sampled_from(["newline", "blank", "sentence", "whole"]), st.integers(0, 40))
def test_a_response_cut_off_anywhere_keeps_the_steps_of_its_tokens(text, how, kept):
    """Truncation, in the middle of a separator or of a character too, moves no token that remains."""
    splitter = StepSplitter(how)
    pieces = [bytes([b]) for b in text.encode()]
    tokens, mask, token_bytes = batch_of(pieces)
    whole, _, _ = step_ids_from_text(tokens, mask, token_bytes, splitter, special_ids=[0])
    cut_mask = mask & (np.cumsum(mask, 1) <= kept)
    cut_ids, _, _ = step_ids_from_text(tokens, cut_mask, token_bytes, splitter, special_ids=[0])
    complete = len(b"".join(pieces[:kept]).decode(errors="ignore").encode())  # half a character has no text yet
    counts = cut_mask & (np.cumsum(mask, 1) <= complete)
    np.testing.assert_array_equal(cut_ids[counts], whole[counts])


def test_rows_without_text_and_without_tokens():
    tokens = np.array([[5, 0, 0], [5, 0, 0]])
    mask = np.array([[False, True, False], [False, False, False]])
    ids, num_steps, texts = step_ids_from_text(tokens, mask, {0: b"", 5: b"?"}.__getitem__, StepSplitter("newline"))
    np.testing.assert_array_equal(ids, [[-1, 0, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(num_steps, [0, 0])
    assert texts == ["", ""]


def test_a_models_own_markers_may_be_special_tokens():
    """A marker that is one special token counts as its text, unless it is among the tokens without text."""
    table = {0: b"", 1: b"<|step|>", 2: b"2+2", 3: b"=4", 4: b"so 4", 9: b"<|end|>"}
    tokens, mask = np.array([[2, 3, 1, 4, 1, 9]]), np.ones((1, 6), bool)
    splitter = StepSplitter("tag", tags=("<|step|>",))
    ids, num_steps, _ = step_ids_from_text(tokens, mask, table.__getitem__, splitter, special_ids=[9])
    np.testing.assert_array_equal(ids, [[0, 0, 0, 1, 1, 1]])
    assert num_steps[0] == 2
    np.testing.assert_array_equal(step_ids_from_separators(tokens, mask, [1], blank_ids=[9]), ids)


def test_scores_are_read_on_the_last_token_of_a_separator_of_several():
    """The label of a step is on the last token of its separator, where "last" reads, and not after it."""
    table = {1: b"x=1", 2: b"\n", 3: b"y", 4: b"=2", 5: b""}
    tokens = np.array([[1, 2, 2, 3, 4, 2, 2, 5, 5]])
    mask = np.array([[True] * 7 + [False] * 2])
    ids, num_steps, _ = step_ids_from_text(tokens, mask, table.__getitem__, StepSplitter("blank"))
    np.testing.assert_array_equal(ids, [[0, 0, 0, 1, 1, 1, 1, -1, -1]])
    scores = np.arange(9.0)[None]
    values, exists = rl.step_rewards(scores, ids, num_steps=3, how="last")
    np.testing.assert_array_equal(values, [[2.0, 6.0, 0.0]])
    np.testing.assert_array_equal(exists, [[True, True, False]])
    placed = rl.token_rewards_from_steps(values, ids)
    np.testing.assert_array_equal(np.flatnonzero(placed[0]), [2, 6])
    assert num_steps[0] == 2


def test_steps_of_published_solutions_are_found(data_dir):
    """Math-Shepherd's solutions: as many steps by their numbers as by the marker after each of them."""
    rows = [json.loads(line) for line in (data_dir / "formats" / "math_shepherd_samples.jsonl").open()]
    numbered, marked = StepSplitter("step_marker"), StepSplitter("tag", tags=("\u043a\u0438",))
    for row in rows:
        text = row["input"][row["input"].index("Step 1") :]
        by_marker = marked(text)
        assert len(by_marker) == text.count("\u043a\u0438")
        assert [a for a, _ in numbered(text)] == [a + len(text[a:b]) - len(text[a:b].lstrip()) for a, b in by_marker]
