"""Commands of the table of methods, README and quickstart are understood, and run on a small model and little data."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess

import jax
import numpy as np
import pytest

from prm_jax import cli, models, prm
from prm_jax.data import load_task
from prm_jax.data.step_data import StepRecord, read_step_data, write_step_data
from prm_jax.prm.forward import init_head
from prm_jax.verifiers.sandbox import available_levels
from tests.recipes_test import commands as commands_of
from tests.recipes_test import parsed
from tests.search.careless import Careless, stand_in

pytestmark = pytest.mark.heavy

REPO = pathlib.Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "methods.md"
CONTEXT_ONLY = {14, 36, 37, 45, 50, 51}
"""Works without a method of process rewards: a trading system, a market maker, data sets and surveys."""
SMALL = {
    "train": (
        "--steps 1 --no-baseline --no-plots --eval.every 0 --eval.problems 2 --eval.prm-problems 0 "
        "--rollout.prompts-per-step 2 --rollout.samples-per-prompt 2 --prm.pretrain-rollouts 0 --rollout.filter none"
    ),
    "train-prm": "--max-steps 1 --train.batch-size 8 --data.max-length 64 --eval-every 0 --no-plots --text.separator=",
    "label": "--problems 4 --rollouts 6 --sampling.max-new-tokens 40 --task-options max_operands 4",
    "search": (
        "--problems 1 --samples 4 --width 2 --simulations 2 --max-steps 2 --sampling.step-tokens 8 "
        "--sampling.max-new-tokens 12 --task-options max_operands 4"
    ),
    "critique": "--max-new-tokens 4",
    "eval": "--resamples 100",
    "score": "",
    "generate": "--max-new-tokens 4 --hint.problems 2",
    "plot": "",
}
"""Options that make a command quick, after its own."""
KEPT = ("steps.jsonl", "solutions.jsonl", "functions.jsonl", "traces.jsonl")
MUTATE = "--problems 4 --mutations 2 --refactors 1"
FROM_POLICY = "--model.path policy --sft.steps 0"
"""Training begins with a model that is there; a task of another alphabet cannot."""


def rows() -> dict[int, str]:
    """Number of a work -> its cell "do this"."""
    found = {}
    for line in PAGE.read_text().splitlines():
        match = re.match(r"\| (\d+) \|", line)
        if match:
            found[int(match[1])] = line.split(" | ")[2]
    return found


def commands() -> list[tuple[int, list[str]]]:
    """(number of the work, words) of every command."""
    found = [(n, text) for n, cell in rows().items() for text in re.findall(r"`((?:prm-jax|python) .*?)`", cell)]
    return [(number, shlex.split(text)) for number, text in found]


def first_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of the commands that a new user meets first, but for those that download a model."""
    pages = ("README.md", "docs/quickstart.md")
    found = [
        (page, ["prm-jax", *words])
        for page in pages
        for words in commands_of(re.sub(r" {2,}# .*", "", (REPO / page).read_text(), flags=re.MULTILINE))
    ]
    return [(page, words) for page, words in found if "smollm2" not in words and "--help" not in words]


COMMANDS = [(number, words) for number, words in commands() if words[0] == "prm-jax"]
FIRST = first_commands()
SLOW = {"train", "train-prm"}


def test_every_work_has_something_to_do_or_a_reason():
    cells = rows()
    assert sorted(cells) == list(range(1, 58)) and len(COMMANDS) >= 40
    empty = {number for number, cell in cells.items() if cell.strip() == "-"}
    assert CONTEXT_ONLY <= empty
    for number in empty:
        line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {number} |"))
        assert line.rstrip(" |").rpartition(" | ")[2] not in ("", "-"), f"row {number}: neither what to do nor why not"


def name_of(value):
    return " ".join(value)[:70] if isinstance(value, list) else str(value)


@pytest.mark.parametrize(("number", "words"), [(n, w) for n, w in COMMANDS if w[1] in SLOW], ids=name_of)
def test_the_command_is_understood(number, words):
    """Those that are left out of the fast lane."""
    parsed(words[1], [*words[2:], *small(words)])


def small(words: list[str]) -> list[str]:
    """Options that make a command quick."""
    if "mutate" in words:
        return shlex.split(MUTATE)
    more = SMALL[words[1]]
    if words[1] == "train" and "--model.path" not in words:
        more += " --sft.steps 2" if "--task.name" in words else f" {FROM_POLICY}"
    return shlex.split(more)


def test_the_first_commands_are_found():
    assert [words[1] for _, words in FIRST].count("train") >= 4 and "plot" in [w[1] for _, w in FIRST]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The models and files that the page names, for sums of two or three numbers."""
    folder = tmp_path_factory.mktemp("methods")
    task = load_task("carry", min_operands=2, max_operands=3, num_eval=16)
    tokenizer = task.tokenizer()
    printable = models.CharTokenizer("\n" + "".join(map(chr, range(32, 127))))
    for name, own in (("judge", printable), ("policy", tokenizer)):
        config = models.ModelConfig(
            vocab_size=own.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1,
            head_dim=8, max_position_embeddings=256,
        )  # fmt: skip
        params = models.init_params(config, jax.random.key(0))
        models.save_weights(folder / name, config, params, tokenizer=own)
    for seed, name in enumerate(("prm", "prm2")):
        spec = prm.Spec(prm.Token(), config)
        head = init_head(spec, jax.random.key(seed), num_outputs=2, random=True)
        layout = prm.TextLayout(separator="", pieces="prompt")
        prm.save(folder / name, prm.PRM(spec, prm.Weights(params, head, {}), tokenizer, layout))
    rng = np.random.default_rng(0)
    records = [record for index in range(12) for record in solutions(task, task.train[index], rng)]
    for name in ("steps.jsonl", "solutions.jsonl"):
        write_step_data(folder / name, records)
    functions = [{"prompt": f"f{index}:", "answer": f"f{index}"} for index in range(40)]
    (folder / "functions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in functions))
    traces = [
        {"prompt": f"12*{n}=", "group": str(n), "steps": [text, f"[12*{n}]{{{12 * n}}}{'y' if right else 'n'}"],
         "forced": [[0, len(text)], [len(text + f"[12*{n}]"), len(text + f"[12*{n}]{{{12 * n}}}")]], "outcome": right}
        for n in range(30, 38) for text, right in ((str(12 * n), 1), (str(12 * n + 10), 0))
    ]  # fmt: skip
    (folder / "traces.jsonl").write_text("".join(json.dumps(one) + "\n" for one in traces))
    (folder / "examples").symlink_to(REPO / "examples")
    return folder


def solutions(task, problem, rng):
    """A right, a wrong, and two careless solutions to a problem."""
    texts = [right(problem), *(task.demonstration(problem, rng) for _ in range(2))]
    texts.append(re.sub(r"#\d+", "#1", texts[0]))
    for index, text in enumerate(texts):
        steps = tuple(text[a:b] for a, b in task.splitter(text))
        labels = tuple(map(float, task.step_labels(problem, text)))
        told = {
            "answer": text.rpartition("#")[2], "reference": problem.answer, "score": float(rng.random()),
            "objectives": {"short": -float(len(text)), "right": float(np.mean(labels))}, "total": [4] * len(steps),
        }  # fmt: skip
        name = f"{problem.id}/{index}"
        yield StepRecord(problem.prompt, steps, labels, task.verify(problem, text), problem.id, name, told)


def right(problem):
    """The running totals of a sum, and its answer."""
    total, *others = (int(number) for number in problem.prompt.rstrip("=").split("+"))
    steps = []
    for number in others:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return ";".join(steps) + f"#{total}"


def run(words, folder):
    if "runs/step-dpo/model" in words and not (folder / words[2]).exists():
        shutil.copytree(folder / "policy", folder / words[2])
    if "--interval-from" in words:
        assert cli.main(["score", "prm", "solutions.jsonl", "--out", "known"]) == 0
        (folder / "known" / "scores.jsonl").rename(folder / "known.jsonl")
    if "--calibration" in words:
        known = [
            {"id": f"earlier{n}", "answer": "1", "correct": n % 2, "score": n / 9, "agreement": 1} for n in range(10)
        ]
        (folder / "earlier.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ({"settings": {}}, *known)))
    if "--data.agree-with" in words:  # a judge that knows nothing agrees with nobody
        lines = [json.dumps({"id": one.id, "labels": one.labels}) for one in read_step_data("steps.jsonl")]
        (folder / "judged").mkdir(exist_ok=True)
        (folder / "judged" / "scores.jsonl").write_text("\n".join(lines) + "\n")
    more = small(words)
    if words[1] in SLOW and "--run-dir" not in words:
        more += ["--run-dir", str(folder / "runs" / str(len(list((folder / "runs").glob("*")))))]
    assert cli.main([*words[1:], *more]) == 0


@pytest.mark.parametrize(
    ("number", "words"),
    [pytest.param(n, w, marks=pytest.mark.slow) if w[1] in SLOW else (n, w) for n, w in COMMANDS],
    ids=name_of,
)
def test_the_command_runs(number, words, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    if "mutate" in words and all(available_levels().values()):
        pytest.skip("no sandbox on this machine")
    if words[1] in ("label", "search"):
        stand_in(monkeypatch, Careless())  # a policy that solves some problems
    (workplace / "runs").mkdir(exist_ok=True)
    for path in workplace.glob("*.jsonl"):  # what an earlier row wrote
        if path.name not in KEPT:
            path.unlink()
    run(words, workplace)


@pytest.mark.slow
def test_the_first_commands_run(workplace, tmp_path, monkeypatch, capsys):
    """In the order of the pages, since later ones read what earlier ones left; what both pages say runs once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy").symlink_to(workplace / "policy")
    (tmp_path / "examples").symlink_to(REPO / "examples")
    shutil.copytree(workplace / "prm", tmp_path / "runs" / "a" / "prm")
    done = []
    for _, words in FIRST:
        what = shlex.split(re.sub(r"--run-dir \S+", "", shlex.join(words)))
        if what not in done:
            run(words, tmp_path)
        done.append(what)
    assert (tmp_path / "runs" / "tiny" / "run.html").stat().st_size > 1_000


STUB = """#!/bin/sh
echo "$*" >> "$LOG"
while [ $# -gt 1 ]; do
    case $1 in --run-dir) mkdir -p "$2/model"; touch "$2/result.json";; esac
    shift
done
"""


def test_the_rounds_of_self_training_are_commands_that_are_understood(tmp_path):
    """Those of examples/self_training.sh, run with a program that only notes how it was called."""
    stub = tmp_path / "bin" / "prm-jax"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    log, out = tmp_path / "log", tmp_path / "rounds"
    more = {"TRAIN_OPTIONS": "--train.epochs 2 --train.learning-rate 1e-3", "RULE": "rest_mcts", "PROBLEMS": "8"}
    environment = os.environ | more | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "LOG": str(log)}
    words = ["sh", REPO / "examples" / "self_training.sh", "policy", "2", out, "--task", "carry"]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    calls = [line.split(" ") for line in log.read_text().splitlines()]
    assert [call[0] for call in calls] == 2 * ["label", "train-prm", "train-prm", "search", "search"]
    for name, *rest in calls:
        parsed(name, rest)
    first, second = (" ".join(call) for call in calls if call[0] == "label")
    assert "--tree.scorer none" in first and "--first-problem 0" in first and "--labels quality" in first
    assert f"label {out}/1/imitation/model" in second and f"--tree.scorer {out}/1/values/model" in second
    assert "--first-problem 8" in second
    # Started again, it trains nothing twice.
    subprocess.run(words, env=environment, check=True, capture_output=True)
    again = [line.split(" ")[0] for line in log.read_text().splitlines()][10:]
    assert again == 2 * ["label", "search", "search"]
    failed = subprocess.run([*words[:2], "policy"], env=environment, check=False, capture_output=True, text=True)
    assert failed.returncode == 2 and "usage:" in failed.stderr
