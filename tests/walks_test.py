"""The commands of pages run one after the other, as a reader types them, with a small model and little data.

`methods_test.py` runs those of the table of methods, README and quickstart, `examples_test.py` the guide to own data.
"""

import json
import pathlib
import re
import shlex
import shutil

import pytest

from prm_jax import cli
from prm_jax.verifiers.sandbox import available_levels
from tests.docs_commands_test import TASK
from tests.methods_test import FROM_POLICY, SMALL, workplace  # noqa: F401  (a fixture)
from tests.recipes_test import commands
from tests.search.careless import Careless, stand_in

pytestmark = [pytest.mark.heavy, pytest.mark.slow]

REPO = pathlib.Path(__file__).resolve().parents[1]
PAGES = {
    "tutorials/first_run": 4, "tutorials/reward_model": 6, "tutorials/search": 1, "gallery": 3, "prm": 9,
    "rollouts": 5, "quantization": 3, "training": 3, "code": 7,
}  # fmt: skip
"""Page -> how many of its commands run here."""
NOT_HERE = (
    "Qwen", "smollm2", "gsm8k",  # downloads
    "http", "chat", "judged/",  # a server; a model with a chat template; a judge that has something to say
    "tiny-long",  # goes on from a long run
    " ...",  # leaves out what a reader adds
)  # fmt: skip
SIZES = {
    **SMALL,
    "search": SMALL["search"].replace("--task-options max_operands 4", ""),
    "label": SMALL["label"].replace("--task-options max_operands 4", "--tree.simulations 3"),
    "train-prm": SMALL["train-prm"].replace("max-length 64", "max-length 250"),
    "convert": "",
}
MODEL = {"code": "judge", "quantization": "prm"}
"""Page -> what it calls MODEL, when not a policy."""
LEFT_BY_TINY = {"policy": "policy", "start": "policy", "prm": "prm"}
"""What `prm-jax train --preset tiny` leaves in its directory -> what takes its place here."""


def walk(page: str) -> list[list[str]]:
    """The commands of a page that run here, in order."""
    text = re.sub(r" {2,}# .*", "", (REPO / "docs" / f"{page}.md").read_text(), flags=re.MULTILINE)
    for name, meant in (("TASK", TASK), ("MODEL", MODEL.get(page, "policy")), ("DIR", "policy")):
        text = re.sub(rf" {name}\b", f" {meant}", text)
    found = commands(text)
    return [words for words in found if not any(stop in f"{shlex.join(words)} " for stop in NOT_HERE)]


def sized(words: list[str]) -> list[str]:
    """The same command, quick."""
    more = SIZES[words[0]].split()
    if words[1] == "--model.path":
        more += ["--rollout.max-new-tokens", "16"]
        more += ["--sft.steps", "2", "--sft.batch-size", "4"] * ("--sft.loaded" in words)
    elif words[0] == "train":
        fresh = "--task.name" in words or "programs" in words  # another alphabet than the policy's
        more += ("--sft.steps 2 --sft.batch-size 4" if fresh else FROM_POLICY).split()
    if "--quantize" in words or "--model.quantize" in words:
        more += [f"--{'model.' * (words[0] == 'train-prm')}quantization.group", "8"]
    return [*words, *more]


@pytest.fixture
def reader(workplace, tmp_path, monkeypatch):  # noqa: F811
    """A directory with what the pages take for granted: models, step data, problems."""
    for name in ("policy", "prm", "judge"):
        shutil.copytree(workplace / name, tmp_path / name)
    for name in ("steps", "solutions", "traces"):
        shutil.copy(workplace / f"{name}.jsonl", tmp_path)
    shutil.copy(tmp_path / "steps.jsonl", tmp_path / "data.jsonl")
    problems = (REPO / "examples" / "function_problems.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "mbpp.jsonl").write_text("".join(line for line in problems if len(line) < 270))  # for a short context
    traces = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    bare = [{**trace, "steps": trace["steps"][:1], "forced": []} for trace in traces]
    (tmp_path / "claims.jsonl").write_text("".join(json.dumps(one) + "\n" for one in bare))
    hinted = [{"prompt": f"{n}*12=", "answer": str(12 * n), "solution": f"[{n}*12]#{12 * n}"} for n in range(20, 40)]
    (tmp_path / "hinted.jsonl").write_text("".join(json.dumps(one) + "\n" for one in hinted))
    (tmp_path / "examples").symlink_to(REPO / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, reader, monkeypatch):
    if page == "code" and all(available_levels().values()):
        pytest.skip("no sandbox on this machine")
    found = walk(page)
    assert len(found) == PAGES[page], [shlex.join(words) for words in found]
    for words in found:
        for path in (pathlib.Path(word) for word in words):
            if path.parent == pathlib.Path("runs/tiny") and path.name in LEFT_BY_TINY and not path.exists():
                shutil.copytree(reader / LEFT_BY_TINY[path.name], path)
        if words[0] == "label":  # which does not write over a file
            pathlib.Path(words[2]).unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            if words[0] in ("label", "search") and "carry" in words:
                stand_in(patch, Careless())  # a policy that solves some problems
            assert cli.main(sized(words)) == 0, shlex.join(sized(words))
