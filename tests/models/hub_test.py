"""Models by their name on the hub: the local cache first, then a download, and clear messages without either."""

import pathlib

import pytest

from prm_jax.errors import UserError
from prm_jax.models import Tokenizer, find_model, load_weights, save_weights
from prm_jax.models.hub import find_config, is_hub_name
from prm_jax.models.tokenizer import CharTokenizer
from tests.models.checkpoints import CONFIGS, random_params, same_bits

hub = pytest.importorskip("huggingface_hub", reason="pip install 'prm-jax[hf]'")
CONFIG = CONFIGS["qwen2"]
NAME = "some-org/Tiny-Model"


def snapshot_of(cache: pathlib.Path, name: str = NAME, kind: str = "models") -> pathlib.Path:
    """An empty snapshot in the layout of the hub's cache."""
    repo = cache / f"{kind}--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache, and no network."""
    real = hub.snapshot_download

    def download(**options):
        if options.get("local_files_only"):
            return real(**options, cache_dir=tmp_path / "hub")
        raise ConnectionError("[Errno -2] Name or service not known")

    monkeypatch.setattr(hub, "snapshot_download", download)
    return tmp_path / "hub"


def test_a_cached_model_needs_no_network(cache, tmp_path):
    params = random_params(CONFIG)
    save_weights(tmp_path / "m", CONFIG, params, tokenizer=CharTokenizer("0123"))
    snapshot = snapshot_of(cache)
    for file in (tmp_path / "m").iterdir():
        file.rename(snapshot / file.name)
    assert find_model(NAME) == snapshot
    assert same_bits(load_weights(NAME, host=True)[1], params)
    assert Tokenizer.load(NAME).tokens == CharTokenizer("0123").tokens


def test_a_cached_data_set(cache):
    snapshot = snapshot_of(cache, kind="datasets")
    (snapshot / "train.jsonl").write_text("{}")
    assert find_model(NAME, repo_type="dataset") == snapshot
    with pytest.raises(UserError, match="cannot download the model"):
        find_model(NAME)


def test_a_snapshot_without_weights_is_completed(cache, monkeypatch):
    snapshot = snapshot_of(cache)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(UserError, match="cannot download"):
        find_model(NAME)
    (snapshot / "model-1.safetensors").write_text("")
    assert find_model(NAME) == snapshot


def test_downloads_safetensors_and_json_but_no_pickles(tmp_path, monkeypatch):
    asked = []

    def download(**options):
        if options.get("local_files_only"):
            raise FileNotFoundError("not cached")
        asked.append(options)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert find_model(f"{NAME}@v1.0") == tmp_path
    (options,) = asked
    assert (options["repo_id"], options["revision"], options["repo_type"]) == (NAME, "v1.0", "model")
    assert "*.safetensors" in options["allow_patterns"]
    assert not any(p.endswith((".bin", ".pt", ".py", "*")) for p in options["allow_patterns"])


def test_without_network(cache):
    expected = f"no local path {NAME}; cannot download the model {NAME} .*not known.*hf download {NAME} --local"
    with pytest.raises(UserError, match=expected):
        load_weights(NAME)


def test_offline(cache, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the local cache .*HF_HUB_OFFLINE is set"):
        find_model(NAME)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "there is no model some-org/Tiny-Model on the hub"),
        ("RevisionNotFoundError", "has no such revision"),
        ("HfHubHTTPError", "cannot download the model"),
    ],
)
def test_the_hub_s_refusals(cache, monkeypatch, error, message):
    def download(**options):
        if options.get("local_files_only"):
            raise FileNotFoundError
        raise type(error, (Exception,), {})("Bad things\nand more")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(UserError, match=message):
        find_model(NAME)


def test_without_the_package(cache, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'prm-jax\[hf\]'"):
        find_model(NAME)


@pytest.mark.parametrize("name", ["model", "a/b/c", "/a/b", "./a/b", "../b", "a/..", "~/b", "a b/c", "a/b.gguf/c", ""])
def test_paths_are_left_alone(name, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", None)
    assert not is_hub_name(name)
    assert find_model(name) == pathlib.Path(name)


def test_a_path_that_exists_takes_precedence(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some-org" / "Tiny-Model").mkdir(parents=True)
    assert find_model(NAME) == pathlib.Path(NAME)


def test_smollm2_is_a_name(monkeypatch, tmp_path):
    monkeypatch.setattr("prm_jax.models.hub.find_smollm2", lambda: tmp_path / "SmolLM2.gguf")
    assert find_model("smollm2") == tmp_path / "SmolLM2.gguf"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert find_model("smollm2") == pathlib.Path("smollm2")


def test_of_a_configuration_only_that_file_is_fetched(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        hub, "hf_hub_download", lambda *names, **options: asked.append((names, options)) or tmp_path / "x"
    )
    assert find_config("org/name@v1") == tmp_path / "x"
    assert asked == [(("org/name", "config.json"), {"revision": "v1"})]
    assert find_config(str(tmp_path)) == tmp_path and len(asked) == 1


def test_a_configuration_that_cannot_be_fetched_is_explained(monkeypatch):
    def fail(*names, **options):
        raise OSError("no route")

    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"cannot download the model org/name.*no route"):
        find_config("org/name")
