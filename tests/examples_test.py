"""The files in examples/ and the guide to own data: they work as they are written, without a change to the package."""

import pathlib
import re
import shlex

import pytest

from prm_jax import cli, command_line
from prm_jax.commands import train
from prm_jax.data import describe_task, load_task, make_splitter, make_verifier
from prm_jax.verifiers import judge

REPO = pathlib.Path(__file__).resolve().parents[1]
GUIDE = REPO / "docs" / "own_data.md"
# Sizes at which a run takes seconds; what is trained is as the guide says.
TINY = (
    "--steps 1 --sft.steps 2 --no-baseline --no-plots --eval.every 0 --eval.problems 2 --eval.prm-problems 0 "
    "--rollout.prompts-per-step 2 --rollout.samples-per-prompt 2 --prm.pretrain-rollouts 0 --rollout.filter none"
).split()


@pytest.mark.parametrize("name", ["task", "verifier", "splitter"])
def test_examples_are_short(name):
    assert len((REPO / "examples" / f"{name}.py").read_text().splitlines()) <= 25


def test_the_task(monkeypatch):
    monkeypatch.chdir(REPO)
    task = load_task("examples/task.py:make", largest="4")
    assert len(task.train) + len(task.eval) == 9 and task.tokenizer().encode("2*3=2;4;6;#6")
    problem = task.train[0]
    assert task.verify(problem, problem.metadata["solution"]) == 1.0 and task.verify(problem, "#0") == 0.0
    assert len(task.splitter("2;4;6;#6")) == 4 and "passes     " in describe_task(task)


def test_the_verifier(monkeypatch):
    monkeypatch.chdir(REPO)
    (problem, *_) = load_task("arithmetic", digits=1, num_eval=2).eval
    responses = [f"#### {problem.answer}", "So\n" * 200 + f"#### {problem.answer}", "#### -1", "no"]
    verifier = make_verifier("examples/verifier.py:reward")
    assert [v.score for v in judge(verifier, [problem] * 4, responses)] == [1.0, 0.5, 0.0, 0.0]
    both = make_verifier("0.8*number,0.2*examples/verifier.py:brief")
    assert [v.score for v in judge(both, [problem] * 4, responses)] == pytest.approx([1.0, 0.8, 0.2, 0.2])


def test_the_splitter(monkeypatch):
    monkeypatch.chdir(REPO)
    splitter = make_splitter("examples/splitter.py:paragraphs", {"longest": "20"})
    text = "Short one. Yes.\n\nA long paragraph. It has two sentences.\n\n"
    assert [text[a:b] for a, b in splitter(text)] == [
        "Short one. Yes.\n\n", "A long paragraph. ", "It has two sentences.\n\n",
    ]  # fmt: skip


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A directory with the files that the guide's reader writes."""
    python = _blocks("python")
    (tmp_path / "problems.jsonl").write_text(_blocks("json")[0])
    (tmp_path / "reward.py").write_text(next(block for block in python if "def reward" in block))
    (tmp_path / "my_task.py").write_text(next(block for block in python if "def make" in block))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _commands() -> list[list[str]]:
    return [shlex.split(line)[1:] for block in _blocks("bash") for line in block.splitlines()]


def test_the_reader_writes_few_lines():
    lines = [line for name in ("json", "python", "bash") for block in _blocks(name) for line in block.splitlines()]
    assert len([line for line in lines if line.strip()]) < 60


@pytest.mark.parametrize("words", _commands(), ids=lambda words: " ".join(words)[:60])
def test_every_command_makes_its_task(reader, words):
    _, *rest = words
    options = command_line.parse(train.Options, rest, prog="prm-jax train", default=train.defaults(rest))
    task = load_task({"name": options.training.task.name, **options.training.task.options})
    assert task.train and task.eval and "none of the usual ways" not in describe_task(task)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["problems.jsonl", "reward.py", "my_task.py"])
def test_the_guide_s_runs_train(reader, name):
    words = next(words for words in reversed(_commands()) if any(name in word for word in words) and "smoke" in words)
    assert cli.main([*words, *TINY, "--run-dir", str(reader / "run")]) == 0
    assert (reader / "run" / "metrics.jsonl").stat().st_size
