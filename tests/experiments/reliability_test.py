"""Faults of real jobs of two processes under the launcher: detected, restarted, and the same bits at the end."""

import dataclasses
import json

import pytest

from experiments.reliability import drills, main
from experiments.reliability.drills import JOB, Setting

WORDS = (str(JOB), "--steps", "30", "--save-every", "4", "--pause", "0", "--compare")


@pytest.fixture
def setting(tmp_path):
    """A job that trains a second time without faults in its last attempt, so that no run is needed for comparison."""
    return Setting(WORDS, tmp_path, devices=1, cache=tmp_path / "cache")


def run_to_the_end(setting, *words):
    """(lines of the launcher, results) of a job with more options."""
    setting = dataclasses.replace(setting, words=(*setting.words, *words))
    with drills.launched(setting, "run") as launcher:
        code = launcher.finish()
        assert code == 0, launcher.text()[-4000:]
        text = launcher.text()
    return text, json.loads((setting.run_dir("run") / "result.json").read_text())


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_by_the_watchdogs(setting):
    text, result = run_to_the_end(setting, "--fault", "hang", "--watchdog-exit", "5")
    assert "exited with 76 (stuck, ended by the watchdog)" in text
    assert "watchdog: " in text and "has taken more than 5 s (compilation not counted)" in text
    assert result["sha256"] == result["undisturbed"]


@pytest.mark.slow
def test_kills_of_random_processes_at_random_moments(setting):
    found = drills.kills(setting, 3, None, seed=3)
    assert len(found["kills"]) == 3 and {kill["process"] for kill in found["kills"]} == {0, 1}
    for end in found["ends"]:
        assert end["code"] == 0
    for path in setting.where.glob("kills-3-*/result.json"):
        result = json.loads(path.read_text())
        assert result["sha256"] == result["undisturbed"]
    assert len({end["digest"] for end in found["ends"]}) == 1


@pytest.mark.slow
def test_a_cut_network_link_is_noticed_on_both_sides_and_the_job_goes_on_when_it_is_back(setting):
    reason = drills.can_cut_links()
    if reason:
        pytest.skip(reason)
    words = (*WORDS[:-1], "--compare", "--pause", "0.2", "--watchdog-exit", "6")
    setting = dataclasses.replace(setting, words=words)
    found = drills.on_two_hosts(setting, "link", 8, outage=8.0)
    assert found["codes"] == [0, 0] and min(found["attempts"]) >= 2
    result = json.loads((setting.run_dir("link") / "result.json").read_text())
    assert result["sha256"] == result["undisturbed"]


def test_wrong_ends_are_reported():
    good = {"digest": "a" * 64, "code": 0}
    found = {
        "undisturbed": good,
        "kills": {"kills": [{"seconds_to_restart": 1.0}, {"seconds_to_restart": 2.5}], "ends": [good, good]},
        "link cut": {**good, "codes": [0, 0], "how": [["process 0 exited with 76"], ["process 1 exited with 76"]]},
        "other": {"skipped": "no root"},
    }
    assert main.failures(found) == []
    assert "| kills | 2 | 1.0 to 2.5 |  | yes |" in main.table(found)
    assert "| link cut |  |  | exited with 76 | yes |" in main.table(found)
    found["kills"]["ends"][1] = {"digest": "b" * 64, "code": 0}
    found["term"] = {**good, "first_code": 1}
    assert len(main.failures(found)) == 2 and "| NO |" in main.table(found)
