"""The command search on the carry task: with a model that knows nothing, and a made-up careless one."""

import json
import pathlib

import jax
import numpy as np
import pytest

from prm_jax import cli, models
from prm_jax.data.carry import CarryTask
from prm_jax.data.step_data import read_step_data
from tests.search.careless import LABEL, METHODS, SMALL, TREE, Careless, jsonl, save_reward_model, stand_in

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_the_careless_policy(method, model, careless, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    words = ["search", model, *SMALL, "--problems", "12", "--method", method, *METHODS[method], "--scorer", "truth"]
    assert cli.main([*words, "--out", str(out), "--chunk", "5"]) == 0
    table = capsys.readouterr().out
    head, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert head["settings"]["method"] == method and len(lines) == 12
    for line, problem in zip(lines, CarryTask(3, 4).eval, strict=False):
        assert line["candidates"] > 0 and line["tokens"] > 0
        assert (line["answer"] == problem.answer) == (line["correct"] == 1.0)
        if method not in ("majority",):  # with the true scores the best candidate is right if any is
            assert line["correct"] == line["any_correct"]
    assert "accuracy" in table and "tokens per problem" in table
    # Another chunk size and going on from a part give the same.
    part = tmp_path / "part.jsonl"
    part.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:8]).replace(out.name, part.name))
    assert cli.main([*words, "--out", str(part), "--chunk", "5", "--resume"]) == 0
    assert part.read_text() == out.read_text()
    assert cli.main([*words, "--out", str(tmp_path / "whole.jsonl"), "--chunk", "12"]) == 0
    assert (tmp_path / "whole.jsonl").read_text().splitlines()[1:] == out.read_text().splitlines()[1:]


def test_a_confident_vote_samples_where_answers_differ(model, careless, tmp_path):
    words = ["search", model, *SMALL, "--problems", "12", "--samples", "12", "--scorer", "verifier", "--method"]
    for method, more in (("majority", []), ("confident_vote", ["--pilot", "4", "--chunk", "5"])):
        assert cli.main([*words, method, *more, "--out", str(tmp_path / method)]) == 0
    votes, confident = answers(tmp_path / "majority"), answers(tmp_path / "confident_vote")
    counts = [line["candidates"] for line in confident]
    assert min(counts) == 4 and max(counts) == 12 and {line["candidates"] for line in votes} == {12}
    assert sum(counts) < 12 * 12 and sum(line["tokens"] for line in confident) < sum(line["tokens"] for line in votes)


def test_refinements_mend_wrong_drafts(model, careless, tmp_path):
    words = ["search", model, *SMALL, "--problems", "12", "--samples", "1", "--width", "3", "--scorer", "truth"]
    found = {}
    for method in ("best_of_n", "refine", "refine_step"):
        assert cli.main([*words, "--method", method, "--out", str(tmp_path / method)]) == 0
        found[method] = answers(tmp_path / method)
    mean = {name: np.mean([line["correct"] for line in lines]) for name, lines in found.items()}
    assert mean["refine"] > mean["best_of_n"] + 0.1 and mean["refine_step"] > mean["best_of_n"] + 0.1
    assert {line["candidates"] for line in found["refine"]} <= {1, *range(2, 8)}  # a right draft stands alone
    stands = [line for line in found["refine"] if line["candidates"] == 1]
    assert stands and all(line["correct"] for line in stands)


@pytest.mark.parametrize("method", ["best_of_n", "step_beam", "mcts"])
def test_the_verifier_and_rollouts_value_prefixes(method, model, careless, tmp_path):
    """The answer is right if any candidate is; rollouts find more of these, and their tokens count."""
    found = {}
    for scorer in ("verifier", "rollouts"):
        words = ["search", model, *SMALL, "--problems", "12", "--samples", "4", "--beams", "1", "--width", "2",
                 "--simulations", "6", "--method", method, "--scorer", scorer, "--rollouts", "6"]  # fmt: skip
        outs = [tmp_path / f"{scorer}{chunk}.jsonl" for chunk in (5, 12)]
        for out, chunk in zip(outs, ("5", "12"), strict=True):
            assert cli.main([*words, "--out", str(out), "--chunk", chunk]) == 0
        one, other = ([json.loads(line) for line in out.read_text().splitlines()[1:]] for out in outs)
        assert one == other and all(line["correct"] == line["any_correct"] for line in one)
        found[scorer] = one
    mean = {name: [np.mean([line[key] for line in lines]) for key in ("correct", "tokens")]
            for name, lines in found.items()}  # fmt: skip
    if method == "best_of_n":  # its prefixes are whole solutions
        assert found["verifier"] == found["rollouts"]
    else:
        assert mean["rollouts"][1] > 3 * mean["verifier"][1]
        assert mean["rollouts"][0] - mean["verifier"][0] > (0.2 if method == "step_beam" else -1e-9)


def answers(out):
    return [json.loads(line) for line in out.read_text().splitlines()[1:]]


@pytest.mark.slow
@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
@pytest.mark.parametrize("method", ["best_of_n", "beam"])
def test_several_devices_give_the_answers_of_one(method, model, tmp_path, capsys):
    prm = save_reward_model(model, tmp_path / "prm", "token", 2)
    words = ["search", model, *SMALL, "--method", method, "--samples", "3", "--beams", "2", "--width", "2", "--scorer",
             prm, "--problems", "3"]  # fmt: skip
    spread = [*words, "--mesh.data", "2", "--mesh.fsdp", "2"]
    found = []
    for name, run in (("one", words), ("mesh", spread)):
        out, solutions = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.solutions"
        assert cli.main([*run, "--out", str(out), "--solutions", str(solutions)]) == 0
        counts = [[line[k] for k in ("candidates", "tokens", "proposals", "scored")] for line in answers(out)]
        # Scores of two candidates may be so near that rounding decides which one stands first.
        own = sorted((one.group, one.steps, one.provenance["score"]) for one in read_step_data(solutions))
        found.append((counts, [one[:2] for one in own], [one[2] for one in own]))
    assert found[0][:2] == found[1][:2]
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-4)
    assert cli.main([*spread, "--sampling.reuse-mib", "8"]) == 2
    assert "leave it out with --mesh" in capsys.readouterr().err
    assert cli.main([*words, "--mesh.data", "3000"]) == 2 and "needs 3000 devices" in capsys.readouterr().err


def test_a_part_of_the_problems_has_the_answers_of_the_whole(model, careless, tmp_path, capsys):
    words = ["search", model, *SMALL, "--samples", "2"]
    parts = [["--problems", "5"], ["--problems", "2"], ["--first-problem", "2", "--problems", "3"]]
    whole, *halves = (tmp_path / f"{i}.jsonl" for i in range(3))
    for out, part in zip((whole, *halves), parts, strict=True):
        assert cli.main([*words, *part, "--out", str(out), "--chunk", "2"]) == 0
    assert answers(whole) == sum(map(answers, halves), [])
    assert cli.main([*words, "--first-problem", "999999"]) == 2
    assert "which are the ones to search from number 999999 on: there are" in capsys.readouterr().err
    labels = [tmp_path / f"labels{i}.jsonl" for i in range(3)]
    for out, part in zip(labels, parts, strict=True):
        assert cli.main(["label", model, str(out), *LABEL, *part, "--searches", "2", "--chunk", "2"]) == 0
    whole, *halves = map(read_step_data, labels)
    assert whole == halves[0] + halves[1]


def test_candidates_as_step_data(model, careless, tmp_path, capsys):
    out, solutions = tmp_path / "found.jsonl", tmp_path / "solutions.jsonl"
    words = ["search", model, *SMALL, "--method", "beam", "--beams", "2", "--out", str(out)]
    kept = [*words, "--solutions", str(solutions)]
    assert cli.main([*kept, "--problems", "3", "--chunk", "2"]) == 0
    # More problems and another chunk go on with the same file.
    assert cli.main([*kept, "--problems", "7", "--chunk", "3", "--resume"]) == 0
    lines, records = answers(out), read_step_data(solutions)
    assert len(lines) == 7 and len(records) == sum(line["candidates"] for line in lines)
    for line in lines:
        own = [record for record in records if record.group == line["id"]]
        assert "".join(own[0].steps) == line["response"] and own[0].provenance["answer"] == line["answer"]
        assert own[0].outcome == line["correct"] and max(record.outcome for record in own) == line["any_correct"]
        scores = [record.provenance["score"] for record in own]
        assert scores == sorted(scores, reverse=True)
    again = tmp_path / "again.jsonl"
    assert cli.main([*words[:-1], str(again), "--problems", "7"]) == 0
    assert [{k: v for k, v in line.items() if k != "solutions"} for line in lines] == answers(again)
    assert cli.main(kept) == 2 and "exists" in capsys.readouterr().err
    more = ["--out", str(tmp_path / "new.jsonl")]
    assert cli.main([*kept, *more]) == 2 and "give another --solutions" in capsys.readouterr().err
    told = ["--problems", "7", "--resume", "--solutions", str(tmp_path / "other.jsonl")]
    assert cli.main([*words[:-1], str(again), *told]) == 2
    assert "line 2 of" in (said := capsys.readouterr().err) and "made without them" in said


def test_a_saved_reward_model_scores_the_candidates(model, careless, tmp_path):
    prm, out = save_reward_model(model, tmp_path / "prm", "token", 2), tmp_path / "found.jsonl"
    assert cli.main(["search", model, *SMALL, "--method", "best_of_n", "--scorer", prm, "--out", str(out)]) == 0
    assert all(json.loads(line)["candidates"] > 0 for line in out.read_text().splitlines()[1:])
    labels = tmp_path / "labels.jsonl"
    words = ["label", model, str(labels), *TREE, "--problems", "2", "--labels", "q", "--tree.scorer"]
    assert cli.main([*words, prm]) == 0
    assert read_step_data(labels)[0].provenance["scorer"] == prm


def test_answers_to_trust_are_calibrated_by_an_earlier_search(model, careless, tmp_path, capsys):
    """The calibration accepts about one wrong answer in seven, less than there are."""
    words = ["search", model, *SMALL, "--samples", "2", "--scorer", "truth", "--problems", "24"]
    known, trusted = tmp_path / "known.jsonl", tmp_path / "trusted.jsonl"
    assert cli.main([*words, "--out", str(known)]) == 0
    capsys.readouterr()
    select = ["--false-discovery", "0.15", "--calibration", str(known), "--trusted", str(trusted)]
    assert cli.main([*words, *select]) == 2 and "has 24 of the same problems" in capsys.readouterr().err
    out = tmp_path / "new.jsonl"
    chances = ["--venn-abers", "score", "agreement"]
    assert cli.main([*words, *select, "--first-problem", "24", "--out", str(out), *chances]) == 0
    told = capsys.readouterr().out
    assert "trusted answers" in told and "expected accuracy" in told
    lines = {line["id"]: line for line in map(json.loads, out.read_text().splitlines()[1:])}
    found = [json.loads(line) for line in trusted.read_text().splitlines()]
    assert found and all(lines[one["id"]]["answer"] == one["answer"] for one in found)
    right = np.mean([lines[one["id"]]["correct"] for one in found])
    assert right > np.mean([line["correct"] for line in lines.values()]), "more than of all answers"
    assert {line["answer"] is None for line in lines.values()} == {line["chance"] is None for line in lines.values()}
    for line in lines.values():
        intervals = {name: one["interval"] for name, one in line["venn_abers"].items()}
        assert set(intervals) == {"score", "agreement"} and all(0 <= a <= b <= 1 for a, b in intervals.values())
    chance = {truth: [line["chance"] for line in lines.values() if line["correct"] == truth] for truth in (0.0, 1.0)}
    assert np.mean(chance[1.0]) > np.mean(chance[0.0]), "the scorer knows which are right"
    # Results that are there are calibrated again, by one of the two.
    again = ["--first-problem", "24", "--out", str(out), "--resume", "--calibration", str(known), *chances[:2]]
    assert cli.main([*words, *again]) == 0
    for line in answers(out):
        one = line.pop("venn_abers")["score"]
        assert line.pop("chance") == one["chance"] and one == lines[line["id"]]["venn_abers"]["score"]
        assert line == {key: value for key, value in lines[line["id"]].items() if key in line}


def test_other_settings_are_refused(model, careless, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    words = ["search", model, *SMALL, "--samples", "2", "--out", str(out)]
    assert cli.main(words) == 0
    assert cli.main(words) == 2 and "exists" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--seed", "1"]) == 2 and "other seed (0, now 1)" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--sampling.top-p", "0.5"]) == 2
    assert "other sampling.top_p (1.0, now 0.5)" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--task-options", "max_operands", "5"]) == 2
    assert "other task_options" in capsys.readouterr().err
    assert cli.main(["search", model, *SMALL, "--resume"]) == 2 and "--resume needs --out" in capsys.readouterr().err
    out.write_text("no json\n")
    assert cli.main([*words, "--resume"]) == 2 and "cannot continue" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scorer", "nowhere"], "no scorer 'nowhere'"),
        (["--scorer", "rollouts", "--rollouts", "0"], "--rollouts is 0; it must be at least 1"),
        (["--scorer", "rollouts", "--method", "beam", "--width", "4000"], "must stay below"),
        (["--width", "0"], "must be at least 1"),
        (["--method", "mcts", "--simulations", "5000"], "must stay below"),
        (["--task", "carryy"], "unknown task"),
        (["--method", "beams"], "unknown search method 'beams' (--method): did you mean 'beam'?"),
        (["--method", "nowhere:search"], "there is no module 'nowhere'"),
        (["--connection.workers", "0"], "--connection.workers is 0; it must be at least 1"),
        (["--method", "parm"], "log-probabilities are never above 0"),
        (["--method", "lookahead", "--horizon", "2000"], "must stay below"),
        (["--sampling.reuse-mib", "-1"], "--sampling.reuse-mib is -1"),
        (["--method", "confident_vote", "--pilot", "20"], "--pilot is 20; it must be at most --samples"),
        (["--method", "refine"], "log-probabilities are never above 0"),
        (["--method", "refine_step", "--scorer", "verifier", "--samples", "2000"], "must stay below"),
        (["--false-discovery", "0.2"], "--false-discovery and --calibration need each other"),
        (["--venn-abers", "score"], "--venn-abers needs --calibration"),
        (["--venn-abers", "score", "length", "--calibration", "x"], "invalid choice 'length'"),
        (["--venn-abers", "score", "--calibration", "nowhere"], "cannot read results of a search"),
        (["--trusted", "x"], "--trusted needs --false-discovery"),
        (["--false-discovery", "1", "--calibration", "x"], "--false-discovery is 1.0"),
        (["--false-discovery", "0.2", "--calibration", "nowhere"], "cannot read results of a search"),
        (["--prover", "rollouts"], "--prover needs --progress-alpha"),
        (["--progress-best-of", "4"], "--progress-best-of needs --progress-alpha"),
        (["--progress-alpha", "-1"], "--progress-alpha is -1.0; it must be at least 0"),
        (["--progress-alpha", "1"], "--method best_of_n does not compare steps"),
        (["--progress-alpha", "1", "--method", "beam"], "the scores of --scorer are not probabilities"),
        (["--alpha", "2"], "--alpha is 2.0; it must be within [0, 1]"),
        (["--sampling.temperature", "nan"], "--sampling.temperature is nan; it must be at least 0"),
        (["--sampling.top-p", "0"], "--sampling.top-p is 0.0"),
        (["--seed", "-1"], "--seed is -1; it must be within [0, 4294967295]"),
        (["--seed", str(1 << 32)], "--seed is 4294967296"),
        (["--server", "localhost:8000"], "is not the address of a server"),
        (["--server", "http://localhost:1", "--connection.no-logprobs"], "scorer logp needs log-probabilities"),
        (["--server", "http://localhost:1", "--connection.key-from", "NO_SUCH"], "no environment variable 'NO_SUCH'"),
    ],
)
def test_bad_options(model, more, message, capsys):
    assert cli.main(["search", model, *SMALL, *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_large_models_keep_what_they_have_read(model, monkeypatch):
    """Unless told otherwise; small ones do not."""
    from prm_jax.rollouts import StepOptions, load_local_policy

    def stores():
        policies = [load_local_policy(model, CarryTask(3, 4), StepOptions(reuse_mib=mib)) for mib in (None, 0, 1)]
        return [policy.engine.batching.reuse is not None for policy in policies]

    assert stores() == [False, False, True]
    config, params = models.load_weights(model)
    large = {**params, "other": np.broadcast_to(np.float32(0), (20_000_000,))}
    monkeypatch.setattr(models, "load_weights", lambda path, **_: (config, large))
    assert stores() == [True, False, True]


def test_a_real_model_proposes_steps(model, tmp_path, capsys):
    words = ["search", model, *SMALL, "--problems", "2", "--width", "2", "--beams", "2", "--sampling.rows", "4"]
    lines = []
    for reuse in ("0", "64"):
        out = tmp_path / f"{reuse}.jsonl"
        assert cli.main([*words, "--method", "step_beam", "--sampling.reuse-mib", reuse, "--out", str(out)]) == 0
        assert "accuracy               0.0000" in capsys.readouterr().out
        lines.append(out.read_text().splitlines()[1:])
    assert lines[0] == lines[1] and len(lines[0]) == 2


def test_a_damaged_file_of_results_is_refused(model, careless, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    words = ["search", model, *SMALL, "--problems", "3", "--method", "majority", "--samples", "2", "--out", str(out)]
    assert cli.main(words) == 0
    head, *lines = out.read_text().splitlines()
    first = json.loads(lines[0])
    for damaged, words_of_it in (
        ([head, "{}"], "line 2 is not the result of 'carry"),
        ([head, lines[1]], "line 2 is not the result of 'carry"),
        ([head, json.dumps(first | {"correct": "yes"})], "line 2 is not the result of 'carry"),
        ([head, json.dumps(first | {"tokens": None})], "line 2 is not the result of 'carry"),
        ([head, json.dumps(first | {"correct": float("nan")})], "line 2 is not the result of 'carry"),
        ([head, *lines, ""], "line 5 is not a JSON object, found ''"),
        ([head, *lines, lines[0]], "line 5 is not the result of any problem"),
        (['{"settings": [1]}', *lines], "its first line holds no settings"),
    ):
        out.write_text("".join(line + "\n" for line in damaged))
        assert cli.main([*words, "--resume"]) == 2
        assert words_of_it in capsys.readouterr().err, damaged
    out.write_text("my notes, in a line without an end")
    assert cli.main([*words, "--resume"]) == 2 and "it is not a file of results" in capsys.readouterr().err
    assert out.read_text().startswith("my notes")
    for begun in ("", head[:7], head[:60], head + "\n"):
        out.write_text(begun)
        assert cli.main([*words, "--resume"]) == 0 and out.read_text().splitlines() == [head, *lines]


@pytest.mark.parametrize("command", ["search", "label"])
def test_a_failed_start_leaves_nothing_in_the_way(command, model, careless, tmp_path, monkeypatch, capsys):
    """The name of the file can be used again; what cannot be written to is told before any work."""
    out = tmp_path / "out.jsonl"

    def words(model, out):
        return [command, model, *([str(out)] if command == "label" else ["--out", str(out)]), *LABEL[:-2]]

    assert cli.main(words(str(tmp_path / "nowhere"), out)) == 2 and not list(tmp_path.iterdir())
    assert cli.main(words(model, tmp_path)) == 2 and "is a directory" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(models, "generate", None)
        assert cli.main(words(model, tmp_path / "file" / "out.jsonl")) == 2
    assert "cannot write to" in capsys.readouterr().err
    first = {"settings": {"model": "another"}, "task": "0"}
    (out if command == "search" else tmp_path / "out.jsonl.partial").write_text(json.dumps(first) + "\n")
    assert cli.main(words(model, out)) == 0


def test_an_interrupted_search_says_what_is_kept_and_how_long_it_takes(model, tmp_path, monkeypatch, capsys):
    out, policy = tmp_path / "found.jsonl", Careless()

    def interrupted(*args, options, **rest):
        if min(options.prompt_ids) >= 2 << 14:  # the third problem
            raise KeyboardInterrupt
        return policy(*args, options=options, **rest)

    stand_in(monkeypatch, interrupted)
    words = ["search", model, *SMALL, "--chunk", "1", "--samples", "2", "--out", str(out)]
    assert cli.main(words) == 130
    told = capsys.readouterr().err
    assert f"the results so far are kept in {out}: the same command with --resume" in told
    assert told.count("2/4 problems") == 1 and told.count(" left\n") == 2


def test_prompts_that_are_too_long_are_told_before_the_work(model, careless, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    long = {"prompt": "+".join("1" * 20), "answer": "20"}
    task = jsonl(tmp_path / "p.jsonl", {"prompt": "1+1=", "answer": "2"}, long)
    words = ["search", model, *task, "--sampling.max-new-tokens", "40", "--chunk", "1", "--out", str(out)]
    assert cli.main(words) == 2 and not out.exists()
    told = capsys.readouterr().err
    assert "p.jsonl:2: its prompt of 40 tokens and a solution of --sampling.max-new-tokens 40 exceed" in told
    assert "context of 64 tokens" in told


def test_steps_may_begin_near_the_end_of_the_context(model, tmp_path):
    """What fits as a whole fits step by step; what is cut off counts in no score."""
    from prm_jax.rollouts import StepOptions, load_local_policy
    from prm_jax.search.language_model import Ask, Partial

    problem = CarryTask(3, 4).eval[0]
    sampling = StepOptions(step_tokens=14, max_new_tokens=64 - len(problem.prompt) - 1)
    engine = load_local_policy(model, CarryTask(3, 4), sampling)
    engine.check_prompts([problem])
    engine.begin([problem], 0)
    before = tuple([5] * (sampling.max_new_tokens - 3))
    ((step,),) = engine.propose([Ask(Partial(0, (before,)), 0)], 1, False)
    engine.steps = StepOptions(step_tokens=3, max_new_tokens=sampling.max_new_tokens)
    ((short,),) = engine.propose([Ask(Partial(0, (before,)), 0)], 1, False)
    assert step.tokens == short.tokens and len(step.tokens) == 3
    assert step.logp == pytest.approx(short.logp, abs=1e-5)
    ((whole,),) = engine.propose([Ask(Partial(0, (before,)), 0)], 1, True)
    assert len(whole.tokens) <= 3


def test_bad_lines_that_were_left_out_are_told(model, careless, tmp_path, capsys):
    task = jsonl(tmp_path / "p.jsonl", {"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2="})
    assert cli.main(["search", model, *SMALL, *task, "skip_bad", "true"]) == 0
    assert "warning: 1 bad records were left out; the first: " in capsys.readouterr().err
    assert cli.main(["search", model, *SMALL, *task[:-1], "0", "skip_bad", "true"]) == 2
    assert "eval_fraction 1" in capsys.readouterr().err


def test_halves_of_characters_are_written_as_escapes(model, careless, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    task = jsonl(tmp_path / "p.jsonl", {"prompt": "1+1=", "answer": "2", "id": "\ud83d"})
    words = ["search", model, *SMALL, *task, "--samples", "2", "--out", str(out)]
    assert cli.main(words) == 0 and '"\\ud83d"' in out.read_text()
    assert cli.main([*words, "--resume"]) == 0


def test_answers_to_vote_on_are_those_that_the_verifier_reads():
    from prm_jax.data.answers import read_answer
    from prm_jax.verifiers.exact import ExactVerifier
    from prm_jax.verifiers.math import MathVerifier

    def task(verifier):
        made = CarryTask(3, 4)
        made.verifier = verifier
        return made

    math, words = task(MathVerifier()), task(ExactVerifier())
    boxed = (r"The answer is $\boxed{x+1}$.", r"so it is \boxed{x+1}", r"Answer: \boxed{x+1}, as 2 is not")
    assert {read_answer(math, text) for text in boxed} == {"x+1"}
    assert [read_answer(math, text) for text in ("the answer is 0.", r"\boxed{2.50}")] == ["0", "5/2"]
    assert [read_answer(words, text) for text in ("yes", " yes\n", "no", " ")] == ["yes", "yes", "no", None]


def test_votes_weigh_scores_below_0():
    """Three candidates for 2 outweigh a slightly better one for 1, whatever the scores are."""
    from prm_jax.prm.prefix_scores import PrefixScorer
    from prm_jax.search.choosing import choose_candidate
    from prm_jax.search.language_model import Candidate, Partial

    answers, scores = ["1", "2", "2", "2"], [-0.9, -1.0, -1.0, -1.1]
    own = [Candidate(Partial(0, ((i,),)), score) for i, score in enumerate(scores)]
    for output in ("logp", "score"):
        weights = PrefixScorer(lambda partials: [], output).weights(scores).tolist()
        assert choose_candidate(own, answers, weights, "weighted") is own[1]
        assert choose_candidate(own, answers, weights, "best") is own[0]
    assert choose_candidate(own, answers, [0.6, 0.5, 0.5, 0.5], "mean") is own[0]
    assert choose_candidate(own, answers, [0.6, 0.9, 0.5, 0.5], "mean") is own[1]
    assert choose_candidate(own, [None] * 4, weights, "majority") is own[0]
    assert choose_candidate([], [], [], "majority") is None


CUSTOM = """
from prm_jax.search import language_model as lm
from prm_jax.search.searchers import BestOfN

def greedy(propose, score, num_questions, max_steps, width=2):
    assert (max_steps, width) == (3, 5)  # the values of the options
    return lm.step_beam_search(propose, score, num_questions, beams=1, width=width, max_steps=max_steps)

def wrong_result(propose, score, num_questions):
    return []

def wrong_signature(propose):
    pass

class Whole(BestOfN):
    choice = "majority"
"""


def test_a_search_rule_of_the_users_own(model, careless, tmp_path, capsys):
    file = tmp_path / "rules.py"
    file.write_text(CUSTOM)
    words = ["search", model, *SMALL, "--scorer", "truth", "--width", "5"]
    outs = [tmp_path / f"{name}.jsonl" for name in ("own", "built_in")]
    assert cli.main([*words, "--method", f"{file}:greedy", "--out", str(outs[0])]) == 0
    assert f"{file}:greedy, scored by truth" in capsys.readouterr().out
    assert cli.main([*words, "--method", "step_beam", "--beams", "1", "--out", str(outs[1])]) == 0
    assert answers(outs[0]) == answers(outs[1])
    assert cli.main([*words, "--method", f"{file}:Whole", "--samples", "2"]) == 0
    example = pathlib.Path(__file__).resolve().parents[2] / "examples" / "search_rule.py"
    assert cli.main([*words, "--method", f"{example}:patient"]) == 0
    for name, message in (
        ("wrong_result", "returned list; expected a search.language_model.Found"),
        ("wrong_signature", "it is called as wrong_signature(propose, score, num_questions)"),
        ("nothing", "has no 'nothing'"),
    ):
        assert cli.main([*words, "--method", f"{file}:{name}"]) == 2
        assert message in capsys.readouterr().err
