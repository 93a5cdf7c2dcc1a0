"""Rows of tokens: where steps are read, what is cut, packing, and TRL's layout on a worked example."""

import numpy as np
import pytest

from prm_jax.data.step_data import StepRecord
from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.rows import Shape, build_rows, collate, pack, through_first_error
from prm_jax.prm.text_layout import lay_out, tokenize

# A prompt and three steps as token ids, and the rows that TRL's stepwise tokenisation makes of them (begin-of-text 1,
# separator 3), whole and cut at 9 tokens.
PROMPT, STEPS, LABELS = [5, 6, 7], [[8, 9], [10], [11, 12, 13]], (1.0, 0.0, 1.0)
TRL = {
    64: ([1, 5, 6, 7, 8, 9, 3, 10, 3, 11, 12, 13, 3], [-100] * 6 + [1, -100, 0, -100, -100, -100, 1]),
    9: ([1, 5, 6, 7, 8, 9, 3, 10, 3], [-100] * 6 + [1, -100, 0]),
}


def record(steps, labels=None, outcome=None, prompt="12?", group="g"):
    return StepRecord(prompt, tuple(steps), labels, outcome, group, "r")


class Pairs(CharTokenizer):
    """Tokens of two characters at even places, so that some reach over the ends of steps."""

    def encode_with_spans(self, text, *, add_special=False):
        spans = [(i, min(i + 2, len(text))) for i in range(0, len(text), 2)]
        ids = [3 + i % 5 for i in range(len(spans))]
        return ([1, *ids], [(0, 0), *spans]) if add_special else (ids, spans)

    def encode(self, text, *, add_special=False):
        return self.encode_with_spans(text, add_special=add_special)[0]


def spelled(ids):
    """The worked example's ids as letters."""
    return "".join(chr(97 + i) for i in ids)


def trl_ids(tokens):
    """The row's ids in the example's own numbers."""
    names = CharTokenizer("\n" + "".join(map(chr, range(97, 123)))).tokens
    return [1 if n == "<bos>" else 3 if n == "\n" else ord(n) - 97 for n in (names[i] for i in tokens)]


@pytest.mark.parametrize("length", [64, 9])
def test_rows_are_those_of_trl(length):
    tokenizer = CharTokenizer("\n" + "".join(map(chr, range(97, 123))))
    data = [record([spelled(ids) for ids in STEPS], LABELS, prompt=spelled(PROMPT))]
    rows, report = build_rows(data, tokenizer, TextLayout(), max_length=length)
    row, (ids, expected) = rows[0], TRL[length]
    assert trl_ids(row.tokens) == ids
    labels = np.full(len(row.tokens), -100)
    labels[row.reads] = np.where(row.label_mask, row.labels, -100)
    assert labels.tolist() == expected
    assert (report.cut, report.cut_steps, report.cut_labels) == ((0, 0, 0) if length == 64 else (1, 1, 1))


def test_a_token_over_two_steps_belongs_to_the_first_and_is_read_there():
    tokenizer = Pairs("ab")
    layout = TextLayout(separator="")
    tokens = tokenize(lay_out("ab", ["aba", "b", "ab"], layout, tokenizer), tokenizer)
    # Spans: bos, "ab" | "ab" "ab" "ab": the second pair of the response holds the end of step 0 and all of step 1.
    assert tokens.step_ids.tolist() == [-1, -1, 0, 0, 2]
    assert tokens.reads.tolist() == [3, 3, 4]


def test_an_end_token_belongs_to_the_last_step(tokenizer):
    layout = TextLayout(separator=" ", last_separator=False, end=True)
    tokens = tokenize(lay_out("1?", ["ax", "by"], layout, tokenizer), tokenizer, end=True)
    assert tokens.ids[-1] == tokenizer.eos_id and tokens.step_ids.tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1]
    assert tokens.reads.tolist() == [5, 8]


def test_truncation_is_between_steps_and_counted(tokenizer):
    data = [record(["ax", "by", "az"], (1.0, 0.0, None), 0.0), record(["a" * 60], (1.0,), 1.0)]
    rows, report = build_rows(data, tokenizer, TextLayout(), max_length=11)
    assert len(rows) == 1 and rows[0].cut == 1 and len(rows[0].tokens) == 10
    assert (report.too_long, report.cut, report.cut_steps, report.cut_labels) == (1, 1, 1, 0)
    assert "1 too long, 1 cut between steps" in str(report)
    with pytest.raises(UserError, match="none of 2 solutions fits"):
        build_rows(data, tokenizer, TextLayout(), max_length=11, whole=True)


def test_labels_after_the_first_error_are_unknown(tokenizer):
    rows, _ = build_rows([record(["a", "b", "a"], (1.0, 0.2, 0.9))], tokenizer, TextLayout(), max_length=64)
    assert through_first_error(rows[0]).label_mask.tolist() == [True, True, False]
    rows, _ = build_rows([record(["a", "b"], (1.0, None))], tokenizer, TextLayout(), max_length=64)
    assert through_first_error(rows[0]).label_mask.tolist() == [True, False]


def test_packing_does_not_split_solutions():
    lengths = [5, 3, 9, 2, 2, 6]
    rows = pack(lengths, 10)
    assert sorted(sum(rows, [])) == list(range(6)) and all(sum(lengths[i] for i in r) <= 10 for r in rows)
    assert len(rows) == 3
    with pytest.raises(ValueError, match="does not fit"):
        pack([11], 10)


def test_a_packed_batch_locates_every_step(tokenizer, records):
    rows, _ = build_rows(records[:5], tokenizer, TextLayout(), max_length=64)
    shape = Shape(rows=4, width=32, solutions=6, steps=3, objectives=("right",))
    batch = collate(rows, shape)
    for index, row in enumerate(rows):
        own = len(row.reads)
        assert (batch.tokens.reshape(-1)[batch.reads[index, :own]] == row.tokens[row.reads]).all()
        assert batch.tokens.reshape(-1)[batch.starts[index]] == row.tokens[row.prompt_end]
        for step in range(own):
            picked = batch.tokens[batch.slots == index * 3 + step]
            assert (picked == row.tokens[row.step_ids == step]).all()
    assert batch.group_ids.tolist() == [0, 0, 0, 0, 1, -1] and not batch.step_mask[5].any()
    assert batch.segment_ids.max() > 1
    with pytest.raises(ValueError, match="do not fit"):
        collate(rows, Shape(1, 32, 6, 3))


def test_a_separator_is_not_written_twice():
    """Steps that were cut out of a response end with it, all but the last."""
    tokenizer = CharTokenizer("ab?\n")
    cut, bare = (lay_out("a?", steps, TextLayout(), tokenizer) for steps in (["a\n", "b\n", "ab"], ["a", "b", "ab"]))
    assert cut == bare and cut.text == "a?a\nb\nab\n"
