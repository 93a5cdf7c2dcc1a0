"""Hints: where they are inserted, what is kept, what is marked."""

import json

import jax
import numpy as np
import pytest

from prm_jax import cli, models
from prm_jax.data.carry import ALPHABET
from prm_jax.errors import UserError
from prm_jax.rollouts import Feedback, SlotEngine, SlotTuning, TurnLimits
from prm_jax.rollouts.hinted import respond_with_hints

TOKENIZER = models.CharTokenizer(ALPHABET)
LIMITS = TurnLimits(max_new_tokens=12, max_turns=3)


@pytest.fixture(scope="module")
def engine():
    config = models.ModelConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=8, max_position_embeddings=96,
    )  # fmt: skip
    params = jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(1))
    return SlotEngine(
        config, params, slots=4, columns=72, key=jax.random.key(3), tokenizer=TOKENIZER, stops=((";",),),
        tuning=SlotTuning(steps_per_call=8, hold=(0,)),
    )  # fmt: skip


def hints(engine, verify, **options):
    prompts = [TOKENIZER.encode(text) for text in ("1+2=", "3+4=", "5+6=")]
    return respond_with_hints(
        engine, prompts, verify, tokenizer=TOKENIZER, **{"hint": "7=7", "limits": LIMITS, **options}
    )


def with_hint(numbers, texts):
    return [1.0 if "7=7" in text and number != 1 else 0.0 for number, text in zip(numbers, texts, strict=True)]


def test_wrong_responses_get_the_hint_and_those_that_it_saves_are_kept(engine):
    found = hints(engine, with_hint)
    assert [one.kept for one in found] == [True, False, True]
    for one in found:
        assert one.rounds == 1 and one.plain_score == 0.0 and one.response.startswith(one.plain + "7=7")
        forced = TOKENIZER.decode([int(token) for token in one.tokens[~one.sampled]], skip_special=True)
        assert forced == "7=7" and len(one.tokens) == len(one.sampled) <= 12 + 3 + 12
        np.testing.assert_array_equal(one.hint, ~one.sampled)


def test_right_responses_stay_as_they_are(engine):
    found = hints(engine, lambda numbers, texts: [1.0] * len(texts))
    assert all(one.rounds == 0 and one.response == one.plain and one.sampled.all() and not one.kept for one in found)


def test_hints_are_repeated_while_the_answer_is_wrong(engine):
    found = hints(engine, lambda numbers, texts: [float(text.count("7=7") >= 2) for text in texts], rounds=3)
    kept = [one for one in found if one.kept]
    assert kept and all(one.rounds == 2 and (~one.sampled).sum() == 6 for one in kept)


def test_the_hint_may_follow_a_word(engine):
    plain = hints(engine, lambda numbers, texts: [1.0] * len(texts))
    mark = plain[0].plain[1]
    found = hints(engine, with_hint, at=(mark,))
    place = plain[0].plain.index(mark) + 1
    assert found[0].response.startswith(plain[0].plain[:place] + "7=7")


def test_the_hint_may_come_first(engine):
    found = hints(engine, with_hint, at=("",))
    assert all(one.response.startswith("7=7") and one.hint[:3].all() and not one.hint[3:].any() for one in found)


def test_tool_outputs_are_marked(engine):
    calls = []

    def tool(action):
        calls.append(action)
        return Feedback("42") if len(calls) < 20 else Feedback(done=True)

    found = hints(engine, lambda numbers, texts: [0.0] * len(texts), step=tool)
    outputs = [TOKENIZER.decode([int(t) for t in one.tokens[~one.sampled & ~one.hint]]) for one in found]
    assert calls and any("42" in text for text in outputs) and not any("7=7" in text for text in outputs)


def test_an_empty_hint_and_a_missing_task_are_refused(engine, capsys):
    with pytest.raises(UserError, match="at least one token"):
        hints(engine, with_hint, hint="")
    assert cli.main(["generate", "smollm2", "--hint.text", "x"]) == 2
    assert "--hint.task" in capsys.readouterr().err


def test_from_the_command_line(tmp_path, capsys):
    tokenizer = models.CharTokenizer(ALPHABET)
    config = models.ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
        num_kv_heads=2, head_dim=8, max_position_embeddings=128,
    )  # fmt: skip
    params = jax.jit(models.init_params, static_argnums=0)(config, jax.random.key(1))
    models.save_weights(tmp_path / "model", config, params, tokenizer=tokenizer)
    words = ["--hint.text", "7=7;", "--hint.task", "carry", "--hint.problems", "3", "--hint.slots", "2"]
    assert cli.main(["generate", str(tmp_path / "model"), "--max-new-tokens", "12", *words]) == 0
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert len(records) == 3 and "0 of 3 right without the hint" in captured.err
    for record in records:
        assert "".join(record["solution"][a:b] for a, b in record["hints"]) == "7=7;" and record["forced"] == []
        assert record["kept"] is False and np.isfinite(record["score"])
