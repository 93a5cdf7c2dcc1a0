"""Search and labels with a server as the policy."""

import json

import numpy as np
import pytest

from prm_jax import cli, models
from prm_jax.data.step_data import read_step_data
from tests.rollouts.completion_server import serving
from tests.search.careless import LABEL, METHODS, SMALL, Careless


class CarelessServer:
    """The careless writer behind a completions API, as a server that says why it stopped, or one that does not."""

    def __init__(self, tells, tokens=False):
        self.writer, self.tells, self.tokens = Careless(), tells, tokens

    def __call__(self, body, number):
        prompt = body["prompt"]
        assert isinstance(prompt, list) == self.tokens
        text = self.writer.tokenizer.decode(prompt, skip_special=True) if self.tokens else prompt
        rng = np.random.default_rng(body["seed"])
        return [self.choice(self.writer.go_on(text, rng), body) for _ in range(body["n"])]

    def choice(self, text, body):
        found = [stop for stop in body.get("stop", ()) if stop in text]
        shown = text[: min(text.index(stop) for stop in found)] if found else text
        tokens = list(text[: len(shown) + 1]) if found else [*shown, ""]
        choice = {"text": shown, "finish_reason": "stop"}
        if len(tokens) > body["max_tokens"]:
            tokens, found = tokens[: body["max_tokens"]], []
            choice = {"text": "".join(tokens), "finish_reason": "length"}
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": [-0.1] * len(tokens)}
        return {**choice, "stop_reason": found[0] if found else None} if self.tells else choice


@pytest.mark.parametrize("method", ["majority", "step_beam", "mcts"])
def test_a_server_as_policy(method, model, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the model in this process was asked")

    monkeypatch.setattr(models, "generate", never)
    found = []
    for tells, tokens in ((True, False), (False, False), (True, True)):
        out = tmp_path / f"{tells}-{tokens}.jsonl"
        with serving(CarelessServer(tells, tokens)) as (url, seen):
            words = ["search", model, *SMALL, "--method", method, *METHODS[method], "--scorer", "truth",
                     "--out", str(out), "--server", url, "--connection.model", "tiny"]  # fmt: skip
            assert cli.main([*words, *(["--connection.prompts", "tokens"] if tokens else [])]) == 0
            assert {body["model"] for body in seen} == {"tiny"} and {body["logprobs"] for body in seen} == {1}
        head, *lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert head["settings"]["server"]["prompts"] == ("tokens" if tokens else "text") and url not in str(head)
        assert all(line["candidates"] > 0 and line["any_correct"] == 1.0 for line in lines)
        found.append(lines)
    assert found[0] == found[1] == found[2]  # what a server says of its stops changes nothing


def test_labels_from_a_server(model, tmp_path, capsys):
    out = tmp_path / "labels.jsonl"
    words = ["label", model, str(out), *LABEL, "--searches", "2", "--problems", "3"]
    with serving(CarelessServer(tells=True)) as (url, _):
        assert cli.main([*words, "--server", url]) == 0
    assert all(label in (None, 0.0, 1.0) for record in read_step_data(out) for label in record.labels)
    out.unlink()
    assert cli.main([*words, "--server", url]) == 2 and "no server answers at" in capsys.readouterr().err


def test_text_that_the_tokenizer_does_not_have(model, capsys):
    choice = {"text": "so 7", "finish_reason": "stop", "logprobs": {"tokens": ["so 7"], "token_logprobs": [-0.1]}}
    with serving(lambda body, _: [choice] * body["n"]) as (url, _):
        assert cli.main(["search", model, *SMALL, "--server", url]) == 2
    assert "the character 's'" in capsys.readouterr().err
