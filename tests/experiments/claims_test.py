"""The list of claims: complete, and docs/claims.md is what the results say."""

import os
import pathlib
import re

from prm_jax import cli
from prm_jax.runs import claims

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIST = ROOT / "experiments" / "claims.yaml"


def test_the_page_is_up_to_date(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["claims", "--check"]) == 0, "run make claims, and commit docs/claims.md"


def test_every_core_claim_and_every_experiment_is_listed():
    found = claims.read_claims(LIST)
    assert {claim.core for claim in found} >= set(range(1, 13))
    listed = {pathlib.PurePath(claim.results).parts[0] for claim in found if claim.results}
    listed |= {name for claim in found for name in re.findall(r"`experiments/(\w+)`", claim.finding)}
    folders = {path.relative_to(LIST.parent).parts[0] for path in LIST.parent.glob("**/results*.json")}
    assert folders - listed == set(), "add a claim to experiments/claims.yaml"


def test_every_experiment_has_a_smoke_test():
    tests = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("*.py"))
    names = {path.parent.name for path in (ROOT / "experiments").glob("*/main.py")}
    missing = {name for name in names if f'"{name}"' not in tests and f"experiments.{name}" not in tests}
    missing -= {"prime_smollm2"}  # reads the run of a preset, and needs a model that is not installed
    assert missing == set(), "add the experiment to tests/experiments/smoke_test.py"


def test_commands_name_files_that_exist():
    for claim in claims.read_claims(LIST):
        words = claim.command.split()
        if words:
            script = words[2].replace(".", os.sep) + ".py" if words[1] == "-m" else words[1]
            assert (ROOT / script).is_file(), claim.command
