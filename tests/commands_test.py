"""The commands generate and convert on a small random model with a character tokenizer."""

import io
import json
import pathlib

import jax
import numpy as np
import pytest

from prm_jax import cli, models
from tests.rollouts.token_servers import FakeVllm


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    tokenizer = models.CharTokenizer("0123456789+= \n")
    config = models.ModelConfig(
        architecture="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )
    path = tmp_path_factory.mktemp("model") / "hf"
    models.save_weights(path, config, models.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    return path


def _words(model: pathlib.Path, *more: str) -> list[str]:
    return ["generate", str(model), *more, "--max-new-tokens", "6"]


def test_prompts_from_the_command_line(model, capsys):
    assert cli.main(_words(model, "1+1=", "22+3=", "--samples", "2", "--seed", "1")) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n---\n") == 4 and "tokens/s" in captured.err
    assert cli.main(_words(model, "1+1=", "--temperature", "0", "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "1+1=" and 0 < record["tokens"] <= 6 and record["logp"] <= 0


def test_batches_do_not_change_responses(model, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}+{i}="}) + "\n" for i in range(5)) + "\n")
    found = []
    for size in ("5", "3"):
        assert cli.main(_words(model, "--input", str(file), "--json", "--batch-size", size)) == 0
        found.append([json.loads(line)["response"] for line in capsys.readouterr().out.splitlines()])
    assert len(found[0]) == 5 and found[0] == found[1]


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_several_devices_give_the_responses_of_one(model, capsys):
    found = []
    for more in ([], ["--mesh.data", "1", "--mesh.fsdp", "2"]):
        assert cli.main(_words(model, "1+1=", "2+3=", "--json", *more)) == 0
        found.append([json.loads(line)["response"] for line in capsys.readouterr().out.splitlines()])
    assert len(found[0]) == 2 and found[0] == found[1]


def test_the_standard_input_is_a_prompt(model, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("3+4=\n"))
    assert cli.main(_words(model)) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.main(_words(model)) == 2
    assert "no prompt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["1+1=", "--input", "x.jsonl"], "not from both"),
        (["1+1=", "--batch-size", "0"], "--batch-size is 0"),
        (["1+1=", "--samples", "0"], "at least 1"),
        (["1" * 80], "context"),
        (["a prompt it cannot write"], "error:"),
        (["1", "--chat"], "error:"),
    ],
)
def test_bad_requests(model, capsys, more, message):
    assert cli.main(_words(model, *more)) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err


def test_a_server_in_place_of_the_model(model, capsys):
    fake = FakeVllm()
    tokenizer = models.Tokenizer.load(model)
    ids = tokenizer.encode("12 3")

    def change(answer):
        logprobs = {"tokens": [], "token_logprobs": [-0.5] * 4}
        choice = {"text": "12 3", "token_ids": ids, "finish_reason": "stop", "stop_reason": " 3", "logprobs": logprobs}
        return {"model": "tiny", "choices": [choice]}

    fake.change = change
    with fake.running() as url:
        server = ["--server", url, "--connection.model", "tiny"]
        assert cli.main([*_words(model, "1+1=", "2+2=", "--stop", " 3", "--json"), *server]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [record["response"] for record in records] == ["12", "12"] and records[0]["logp"] == -2.0
        asked = [tuple(request["prompt"]) for request in fake.asked]  # in any order
        assert set(asked) == {tuple(tokenizer.encode("1+1=")), tuple(tokenizer.encode("2+2="))}
        assert fake.asked[0]["seed"] != fake.asked[1]["seed"]
        assert cli.main([*_words(model, "1+1=", "--min-p", "0.1"), *server]) == 2
        assert "--min-p is not available with --server" in capsys.readouterr().err


def test_missing_models_and_pickles(tmp_path, capsys):
    (tmp_path / "model.bin").write_bytes(b"x")
    for name, part in ((tmp_path / "absent", "absent"), (tmp_path / "model.bin", "pickle")):
        assert cli.main(["generate", str(name), "1"]) == 2
        assert part in capsys.readouterr().err


def test_convert_round_trip(model, tmp_path, capsys):
    assert cli.main(["convert", str(model), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "1 layers, bfloat16" in capsys.readouterr().out
    assert cli.main(["convert", str(tmp_path / "half"), str(tmp_path / "back"), "--dtype", "float32"]) == 0
    config, params = models.load_weights(tmp_path / "back", host=True)
    original = models.load_weights(model, host=True)[1]
    assert config.dtype == "float32"
    a, b = jax.tree.leaves(original), jax.tree.leaves(params)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.astype("bfloat16").astype(np.float32), y)
    assert models.Tokenizer.load(tmp_path / "back").encode("1+1=") == models.Tokenizer.load(model).encode("1+1=")
    capsys.readouterr()
    assert cli.main(["convert", str(model), str(tmp_path / "back")]) == 2
    assert "error:" in capsys.readouterr().err
    assert cli.main(["convert", str(model), str(tmp_path / "back"), "--overwrite"]) == 0
    assert cli.main(["convert", str(model)]) == 2
