"""Lists of claims: what is read, refused, checked, shown and run again."""

import json
import pathlib

import pytest
import yaml

from prm_jax import cli
from prm_jax.errors import UserError
from prm_jax.runs import claims, claims_page, claims_rerun

ENTRY = {
    "id": "raw",
    "claim": "Raw is worse",
    "source": "arXiv 1234.56789",
    "verdict": "reproduced",
    "finding": "It is.",
    "core": 3,
    "results": "one/results.json",
    "command": "python -m one --out one",
    "rerun": "cheap",
    "seeds": ["config", "seeds"],
    "measured": {"raw": ["tables", "t", "raw", "success"], "clip": ["tables", "t", "clip", "success"]},
    "checks": [["raw", "<", "clip"], ["clip", ">", 0.5]],
}
RESULTS = {
    **claims.stamp(),
    "config": {"seeds": 3},
    "seconds": 200.0,
    "tables": {"t": {"raw": {"success": [0.2, 0.1, 0.3]}, "clip": {"success": 0.9}}},
}


def place(tmp_path: pathlib.Path, entries=(ENTRY,), results=RESULTS) -> pathlib.Path:
    (tmp_path / "one").mkdir(exist_ok=True)
    (tmp_path / "one" / "results.json").write_text(json.dumps(results))
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    return path


def test_the_page_shows_numbers_seeds_and_cost(tmp_path):
    path = place(tmp_path)
    found = claims_page.measure_all(claims.read_claims(path), tmp_path)
    text = claims_page.page(found, command="prm-jax claims", to_results="..")
    assert "| raw | 0.2 [0.1, 0.3] |" in text and "| clip | 0.9 |" in text
    assert "| reproduced * | arXiv 1234.56789 | 3 | 3 min |" in text and "Only 3 seeds, which are too few" in text
    assert "[numbers](../one/results.json)" in text and "python -m one --out one" in text


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        ({"seconds": 90.0}, "90 s"),
        ({"runs": [{"processor_seconds": 100.0, "seconds": 7.0}, {"seconds": 20.0}]}, "2 min"),
        ({"runs": [{"seconds": 20.0}, {}]}, "not recorded"),
        ({"runs": 3}, "not recorded"),
        ({"seconds": None}, "not recorded"),
    ],
)
def test_the_cost_is_the_experiments_or_the_sum_of_its_runs(tmp_path, told, cost):
    results = {name: value for name, value in RESULTS.items() if name != "seconds"} | told
    found = claims_page.measure_all(claims.read_claims(place(tmp_path, results=results)), tmp_path)
    assert f"| 3 | {cost} |" in claims_page.page(found, command="prm-jax claims", to_results="..")


def test_the_command_writes_the_page_and_checks_it(tmp_path, capsys):
    path, page = place(tmp_path), tmp_path / "page.md"
    words = ["claims", str(path), "--out", str(page)]
    assert cli.main([*words, "--check"]) == 2 and "make claims" in capsys.readouterr().err
    assert cli.main(words) == 0 and "1 of them on too few seeds" in capsys.readouterr().out
    assert cli.main([*words, "--check"]) == 0
    place(tmp_path, results={**RESULTS, "seconds": 1.0})
    assert cli.main([*words, "--check"]) == 2


def test_a_verdict_that_the_numbers_no_longer_support_is_refused(tmp_path, capsys):
    tables = {"t": {"raw": {"success": [0.8, 0.7, 0.95]}, "clip": {"success": 0.9}}}
    path = place(tmp_path, results={**RESULTS, "tables": tables})
    assert cli.main(["claims", str(path), "--out", str(tmp_path / "page.md")]) == 2
    assert "raw: raw < clip does not hold: [0.7, 0.95] and [0.9, 0.9]" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize(("operator", "holds"), [("<", False), (">", False), ("~", True)])
def test_overlapping_intervals_support_neither_order(tmp_path, operator, holds):
    tables = {"t": {"raw": {"success": [0.2, 0.1, 0.5]}, "clip": {"success": [0.4, 0.3, 0.6]}}}
    entry = {**ENTRY, "checks": [["raw", operator, "clip"]]}
    path = place(tmp_path, [entry], {**RESULTS, "tables": tables})
    (found,) = claims_page.measure_all(claims.read_claims(path), tmp_path)
    assert (found.failed == ()) == holds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, expected 1: run python -m one"),
        ({"format": None}, "format None"),
        ({"version": "9.9.1"}, "measured with version 9.9.1"),
        ({"tables": {"t": {"raw": {"success": 0.1}, "clip": {}}}}, "no 'success' at tables > t > clip"),
        ({"tables": {"t": {"raw": {"success": "high"}, "clip": {"success": 1}}}}, "finite number or"),
    ],
)
def test_other_results_are_refused(tmp_path, change, message):
    path = place(tmp_path, results={**RESULTS, **change})
    with pytest.raises(UserError, match=message):
        claims_page.measure_all(claims.read_claims(path), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "proved"}, "expected one of reproduced"),
        ({"claim": ""}, "claim: expected a text"),
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"rerun": "often"}, "expected one of exact, cheap, long"),
        ({"seeds": -1}, "seeds: expected a number, exact, or a path"),
        ({"checks": []}, "checks is missing"),
        ({"checks": [["raw", "=", 1]]}, r"expected \[label, one of"),
        ({"checks": [["raw", "<", "delta"]]}, "'delta' is not a label"),
        ({"measured": {"raw": "tables"}}, "paths such as"),
        ({"verdict": "not yet measured"}, "but there are results"),
    ],
)
def test_malformed_entries_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        claims.read_claims(place(tmp_path, [{**ENTRY, **change}]))


def test_claims_of_one_name_and_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="two claims are called 'raw'"):
        claims.read_claims(place(tmp_path, [ENTRY, ENTRY]))
    (tmp_path / "claims.yaml").write_text("just a text")
    with pytest.raises(UserError, match="expected a list of claims"):
        claims.read_claims(tmp_path / "claims.yaml")


def test_numbers_are_compared_by_digits_and_interval():
    assert claims_rerun.differences({"a": 1.0}, {"a": 1.0005}) == []
    assert claims_rerun.differences({"a": [1.0, 0.8, 1.2]}, {"a": [1.1, 0.9, 1.3]}) == []
    assert claims_rerun.differences({"a": {"b": 1.0}}, {"a": {"b": 1.1}}) == ["a > b: 1 before, 1.1 now"]
    assert len(claims_rerun.differences({"a": 1.0}, {"b": 1.0})) == 2


SCRIPT = """import json, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(out / "results.json").write_text({text!r})
"""


def test_experiments_run_again(tmp_path, capsys, monkeypatch):
    other = {"t": {"raw": {"success": [0.2, 0.1, 0.3]}, "clip": {"success": 0.8}}}
    (tmp_path / "one.py").write_text(SCRIPT.format(text=json.dumps({**RESULTS, "tables": other})))
    path = place(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims", str(path), "--rerun", "exact"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["claims", str(path), "--rerun", "exact", "cheap"]) == 1
    assert "t > clip > success: 0.9 before, 0.8 now" in capsys.readouterr().out
    assert cli.main(["claims", str(path), "--rerun", "cheap", "--only", "delta"]) == 2
    (tmp_path / "one.py").write_text("raise SystemExit('no data')")
    assert cli.main(["claims", str(path), "--rerun", "cheap"]) == 2
    assert "failed with exit code 1: no data" in capsys.readouterr().err
