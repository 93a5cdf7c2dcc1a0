"""Critiques: formats, verdicts and their probabilities, votes, the command, and the kind that learns from them."""

import dataclasses
import json

import numpy as np
import pytest

from prm_jax import cli
from prm_jax.data.consensus import consensus, read_first_errors
from prm_jax.data.step_data import StepRecord, read_step_data, write_step_data
from prm_jax.errors import UserError
from prm_jax.models import CharTokenizer
from prm_jax.prm import load, rewards
from prm_jax.prm.critiques import formats, sampling, session, voting
from prm_jax.prm.kinds import Generative
from prm_jax.prm.reward_model_options import TextLayout
from prm_jax.prm.score import PRM, score_solutions
from prm_jax.prm.spec import Spec, Weights
from prm_jax.rollouts.engine import EngineStats, Response
from tests.rollouts.completion_server import serving

BRIEF = formats.FORMATS["brief"]
PLAIN = TextLayout(separator="", pieces="prompt")


class Says:
    """An engine that answers what a function of the prompt's text says, every token with the same probability."""

    context = None
    stops = ((),)

    def __init__(self, tokenizer, answer, chance=0.75):
        self.tokenizer, self.answer, self.chance, self.asked = tokenizer, answer, chance, []

    def submit(self, requests):
        self.new = list(requests)
        self.asked += self.new
        return list(range(len(self.new)))

    def poll(self, *, timeout=None):
        found = []
        for ticket, request in enumerate(self.new):
            ids = self.tokenizer.encode(self.answer(self.tokenizer.decode(request.prompt), request.sample))
            logp = None if self.chance is None else np.full(len(ids), np.log(self.chance), np.float32)
            found.append((ticket, Response(np.asarray(ids, np.int32), logp, np.zeros(len(ids), np.int32), "stop")))
        return found

    def stats(self):
        return EngineStats()


def record(*steps, **more):
    return StepRecord("1+1=?", steps, more.pop("labels", None), more.pop("outcome", None), "p", "r", more)


WORDS = CharTokenizer("".join(map(chr, range(32, 127))) + "\n")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("thinkprm", "Step 1: fine. The step is \\boxed{correct}\nStep 2: no. It is \\boxed{ incorrect}", [1, 0, None]),
        ("thinkprm", "no verdict at all", [None, None, None]),
        ("thinkprm", "\\boxed{correct}" * 5, [1, 1, 1]),
        ("brief", "++-", [1, 1, 0]),
    ],
)  # fmt: skip
def test_verdicts_of_a_solution(name, text, expected):
    form = formats.FORMATS[name]
    engine = Says(WORDS, lambda prompt, sample: text, chance=None)
    ((critique,),) = sampling.sample_critiques(engine, [record("a", "b", "c")], form, layout=PLAIN)
    assert list(critique.verdicts) == expected and critique.text == text


@pytest.mark.parametrize("name", ["genprm", "r_prm"])
def test_a_critique_per_step_reads_the_last_verdict(name):
    form = formats.FORMATS[name]
    other = form.written[1]

    def answer(prompt, sample):
        return other + form.written[0 if "second" not in prompt.split("\n\n")[2] else 1]

    engine = Says(WORDS, answer, chance=None)
    (found,) = sampling.sample_critiques(engine, [record("first", "second")], form, layout=PLAIN, votes=2)
    assert [one.step for one in found] == [0, 0, 1, 1]
    assert voting.votes_of(found, 2).tolist() == [1, 0]


def test_what_is_written_is_read_back_and_stops_at_the_first_wrong_step():
    for form in formats.FORMATS.values():
        labels = [True] if form.scope == "step" else [True, True, False, True]
        read = [right for _, right, _ in form.verdicts(form.write(labels), 4)]
        assert read == labels[:3]


def test_a_verdict_has_the_probability_of_its_word():
    engine = Says(WORDS, lambda prompt, sample: "Step 1: \\boxed{correct} Step 2: \\boxed{incorrect}", chance=0.9)
    ((critique,),) = sampling.sample_critiques(engine, [record("a", "b")], formats.FORMATS["thinkprm"], layout=PLAIN)
    np.testing.assert_allclose(critique.verdicts, [0.9**7, 1 - 0.9**9], rtol=1e-5)


def test_braces_in_a_solution_are_not_placeholders():
    text = formats.FORMATS["thinkprm"].prompt("a {steps} b", ["use {problem}"])
    assert text.startswith("a {steps} b\n") and "Step 1: use {problem}" in text and "\\boxed{correct}" in text


def test_only_a_told_judge_reads_the_answer():
    engine = Says(WORDS, lambda prompt, sample: "+" if "42" in prompt else "-", chance=None)
    judges = session.roles({"brief": BRIEF}, reverse=True)
    lines = session.criticise(
        engine, [record("a", reference="42")], judges, layout=PLAIN, votes=1, max_new_tokens=4
    )
    said = {name: own[0]["verdicts"] for name, own in lines[0]["critiques"].items()}
    assert said == {"brief": (0.0,), "brief+answer": (1.0,)}
    with pytest.raises(UserError, match="needs provenance.reference"):
        session.criticise(engine, [record("a")], judges, layout=PLAIN, votes=1, max_new_tokens=4)


def test_votes_fill_gaps_with_the_verdict_before():
    two = [sampling.Critique("", None, verdicts, 1) for verdicts in [(0.9, 0.2, None), (0.7, None, None)]]
    votes = voting.votes_of(two, 3)
    np.testing.assert_allclose(votes, [0.8, 0.2, np.nan])
    np.testing.assert_allclose(voting.scores_of_votes(votes), [0.8, 0.2, 0.2])
    np.testing.assert_allclose(voting.votes_of(two, 3, how="majority"), [1.0, 0.0, np.nan])
    assert voting.scores_of_votes(np.asarray([np.nan, 0.4])).tolist() == [0.5, 0.4]


def test_judges_that_know_the_outcome_weigh_more():
    rng = np.random.default_rng(0)
    records = [record("a", outcome=float(i % 2)) for i in range(40)]
    good = [np.asarray([one.outcome]) for one in records]
    coin = [np.asarray([float(rng.random() < 0.5)]) for _ in records]
    weights = voting.outcome_weights([good, coin, coin], records)
    assert weights[0] > 3 * abs(weights[1])
    together = voting.judge([good, coin, coin], weights=weights)
    assert [own[0] for own in together.labels] == [one.outcome for one in records]
    tie = voting.judge([[np.asarray([1.0])], [np.asarray([0.0])]])
    assert tie.labels == [(None,)] and voting.judge([[np.asarray([np.nan])]]).labels == [(None,)]


def test_only_agreeing_critiques_are_kept():
    solution = record("a", "b", labels=(1.0, 0.0))
    right, wrong = (sampling.Critique(t, None, v, 1) for t, v in [("yes", (0.9, 0.1)), ("no", (0.1, None))])
    (kept,) = voting.critique_records([solution], [[right, wrong]], name="brief", agreeing=True)
    assert kept.provenance["critique"]["text"] == "yes"
    assert len(voting.critique_records([solution], [[right, wrong]], name="brief", agreeing=False)) == 2


def test_bad_formats_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown critique format 'thinkpmr' .*did you mean 'thinkprm'"):
        formats.find_format("thinkpmr", option="critique")
    with pytest.raises(UserError, match=r"must contain \{problem\} and \{steps\} or \{lines\}"):
        formats.find_format("thinkprm", instruction="Judge this: {problem}")
    with pytest.raises(UserError, match="returned a str, expected a CritiqueFormat"):
        own = tmp_path / "own.py"
        own.write_text("def make():\n    return 'x'\n")
        formats.find_format(f"{own}:make")
    with pytest.raises(UserError, match="has no group"):
        dataclasses.replace(BRIEF, verdict="[+-]")
    with pytest.raises(UserError, match="list of token ids"):
        formats.problem_text([1, 2], "r")


@pytest.fixture(scope="module")
def judge_run(model_path, data_path, tmp_path_factory):
    """A tiny judge, trained on the bare verdicts of the labels: a is right, b is wrong."""
    run = tmp_path_factory.mktemp("judge") / "run"
    words = [
        "train-prm", "--data.path", str(data_path), "--model.path", str(model_path), "--prm.kind", "generative",
        "--prm.critique", "brief", "--prm.max-new-tokens", "4", "--train.learning-rate", "0.02", "--train.epochs", "20",
        "--train.batch-size", "8", "--data.eval-fraction", "0.2", "--data.max-length", "32", "--run-dir", str(run),
        "--eval-every", "0", "--no-plots",
    ]  # fmt: skip
    assert cli.main(words) == 0
    return run


@pytest.mark.heavy
def test_it_learns_to_judge_and_scores_as_any_other_model(judge_run, records, tmp_path, data_path):
    model = load(judge_run / "model")
    assert isinstance(model.spec.kind, Generative) and model.layout.end
    metrics = [json.loads(line) for line in (judge_run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["prm/loss"] for line in metrics if "prm/loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    together, alone = score_solutions(model, records[:6]), score_solutions(model, records[2:3])
    assert together[2].steps == alone[0].steps  # the samples of a solution depend on itself alone
    assert all(0 <= x <= 1 for one in together for x in one.steps)
    firsts = [(one.steps[0], one.record.labels[0]) for one in score_solutions(model, records)]
    assert np.mean([s for s, label in firsts if label]) > np.mean([s for s, label in firsts if not label])
    assert cli.main(["eval", str(data_path), "--model", str(judge_run / "model"), "--out", str(tmp_path)]) == 0
    with pytest.raises(UserError, match="scores by sampling text"):
        rewards.check_gives_step_scores(model.spec)


def test_a_solution_longer_than_the_context_is_refused(config, params, tokenizer, records):
    prm = PRM(Spec(Generative(critique="brief", max_new_tokens=200), config), Weights(params, {}, {}), tokenizer, PLAIN)
    long = dataclasses.replace(records[0], steps=("a" * 60,), labels=None, id="long one")
    with pytest.raises(UserError, match="long one: this solution is longer than the 256 tokens"):
        score_solutions(prm, [records[0], long])


def test_the_command_writes_labels_scores_and_critiques(judge_run, data_path, tmp_path, capsys):
    out = tmp_path / "judged"
    words = ["critique", str(judge_run / "model"), str(data_path), "--critique", "brief", "--out", str(out),
             "--max-new-tokens", "4", "--votes", "2", "--weigh", "outcomes", "--keep", "agreeing"]  # fmt: skip
    assert cli.main(words) == 0
    labelled, scores = read_step_data(out / "labelled.jsonl"), (out / "scores.jsonl").read_text().splitlines()
    assert len(labelled) == len(scores) == 24 and all(len(one.labels) == len(one.steps) for one in labelled)
    learn = read_step_data(out / "critiques.jsonl")
    assert all(one.provenance["critique"]["format"] == "brief" for one in learn)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["brief"]["with_verdict"] > 0.8 and summary["together"]["first_error_agreement"] > 0.4
    assert "same first error" in capsys.readouterr().out
    assert not (out / "critiques.partial.jsonl").exists()
    assert cli.main(["eval", str(out / "scores.jsonl"), "--scored", "--out", str(tmp_path / "eval")]) == 0
    agreed = consensus(read_step_data(data_path), read_first_errors(out / "scores.jsonl"))  # as --data.agree-with
    assert len(agreed.kept) == round(24 * summary["together"]["first_error_agreement"])


def test_an_interrupted_command_continues(judge_run, records, tmp_path, monkeypatch):
    path, calls = tmp_path / "six.jsonl", []
    write_step_data(path, records[:6])
    words = ["critique", str(judge_run / "model"), str(path), "--critique", "brief", "--max-new-tokens", "4", "--chunk"]
    assert cli.main([*words, "3", "--out", str(tmp_path / "whole")]) == 0
    honest = session.criticise

    def fails(*args, **rest):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*args, **rest)

    monkeypatch.setattr(session, "criticise", fails)
    out = ["3", "--out", str(tmp_path / "parts")]
    assert cli.main([*words, *out]) == 130
    assert cli.main([*words, *out]) == 2  # says that --resume continues
    assert cli.main([*words, *out, "--resume"]) == 0 and len(calls) == 3
    for name in ("labelled.jsonl", "scores.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--critique", "brief", "brief"], "names 'brief' twice"),
        (["--critique", "brif"], "did you mean 'brief'"),
        (["--votes", "0"], "votes"),
        (["--critique", "brief", "--reverse"], "needs provenance.reference"),
        (["--instruction", "missing.txt"], "cannot read the instruction missing.txt"),
    ],
)
def test_nonsense_is_refused(model_path, data_path, tmp_path, capsys, more, message):
    words = ["critique", str(model_path), str(data_path), "--out", str(tmp_path / "o"), "--max-new-tokens", "4"]
    assert cli.main([*words, *more]) != 0 and message in capsys.readouterr().err


def test_a_server_judges_with_the_probabilities_of_its_words(model_path, data_path, tmp_path):
    """The word of each step's verdict is a token of its own; the server finds wrong what is written with b."""

    def answer(body, number):
        steps = body["prompt"].strip().split("\n")[1:]
        marks = ["+" if step.startswith("a") else "-" for step in steps]
        choice = {
            "text": "".join(marks), "finish_reason": "stop",
            "logprobs": {"tokens": marks, "token_logprobs": [float(np.log(0.9))] * len(marks)},
        }  # fmt: skip
        return [choice] * body["n"]

    words = ["critique", str(model_path), str(data_path), "--critique", "brief", "--votes", "2"]
    with serving(answer) as (url, seen):
        more = ["--server", url, "--connection.dialect", "text", "--connection.any-model", "--out", str(tmp_path / "o")]
        more += ["--max-new-tokens", "8"]
        assert cli.main([*words, *more]) == 0
    assert len(seen) == 24 and seen[0]["temperature"] == 0.6
    for one in read_step_data(tmp_path / "o" / "labelled.jsonl"):
        assert one.labels == tuple(float(step.startswith("a")) for step in one.steps)
        votes = [0.9 if label else 0.1 for label in one.labels]
        np.testing.assert_allclose(one.provenance["judges"]["brief"], votes, rtol=1e-4)
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["brief"]["first_error_agreement"] == 1.0
