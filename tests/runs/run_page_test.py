"""The interactive page of a run: curves, samples, hostile text, and runs that are refused."""

import json
import re

import pytest

from prm_jax import cli


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "mine"
    (path / "outcome_only").mkdir(parents=True)
    rows = [{"step": i, "seconds": 1.0, "eval/greedy_accuracy": i / 4, "prm/loss": 1 / (i + 1)} for i in range(4)]
    rows[2]["prm/loss"] = "nan"
    for folder in (path, path / "outcome_only"):
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {"prompt": "1+1=", "response": "</script>2", "outcome": 1.0, "steps": [["</script>2", 0.5]], "info": {}}
    (path / "samples.jsonl").write_text("".join(json.dumps({"step": i, **sample}) + "\n" for i in range(700)))
    return path


def embedded(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_the_page_holds_curves_and_samples(run, tmp_path, capsys):
    page = tmp_path / "pages" / "run.html"
    assert cli.main(["plot", str(run), "--html", str(page)]) == 0 and str(page) in capsys.readouterr().out
    text = page.read_text()
    data = embedded(text)
    assert data["curves"]["run"]["eval/greedy_accuracy"] == [[0, 0], [1, 0.25], [2, 0.5], [3, 0.75]]
    assert len(data["curves"]["run"]["prm/loss"]) == 3, "the value that is not finite is left out"
    assert set(data["curves"]) == {"run", "outcome only"} and data["shown"] == ["eval/greedy_accuracy"]
    assert 200 < len(data["samples"]) <= 300 and data["samples"][0]["response"] == "</script>2"
    assert text.count("</script>") == 2, "text of a model cannot end the script"
    assert not re.search(r"(src|href)=|https?://(?!www.w3.org)", text)


def test_what_is_not_a_run_is_refused(run, tmp_path, capsys):
    page = str(tmp_path / "run.html")
    assert cli.main(["plot", str(tmp_path / "absent"), "--html", page]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert cli.main(["plot", str(run), str(run), "--html", page]) == 2
    assert "--html shows one run, found 2" in capsys.readouterr().err
    (run / "metrics.jsonl").write_text("")
    assert cli.main(["plot", str(run), "--html", page]) == 2
    assert "no metrics yet" in capsys.readouterr().err
