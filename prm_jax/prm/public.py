"""Public checkpoints of process reward models whose language model is one that this package computes.

Each layout says where its scores are (a head, or the logits of two tokens) and how the text around the steps is
written. Sources: the model cards, configurations and training code of the models named.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from prm_jax.data.problems import Prompt
from prm_jax.errors import UserError
from prm_jax.models import ModelConfig, Tokenizer, check_fits, checkpoint_layout
from prm_jax.models.safetensors_files import Shards
from prm_jax.models.sharded_assembly import assemble_sharded
from prm_jax.models.sharding import shard_params
from prm_jax.models.weights import DTYPES
from prm_jax.option_values import suggest
from prm_jax.prm.kinds import Generative, Implicit, Token
from prm_jax.prm.reward_model_options import Convention, TextLayout
from prm_jax.prm.score import PRM
from prm_jax.prm.spec import HeadedKind, Kind, Spec, Weights
from prm_jax.prm.text_layout import Reader, Tokens
from prm_jax.runs.learner import Params

_SCORE = "score."


@dataclasses.dataclass(frozen=True)
class PublicLayout:
    """How one family of public checkpoints scores.

    Attributes:
      kind: the kind that computes its scores.
      text: how prompt and steps are written.
      classes: the architectures whose config names it; empty: the user must name it.
      labels: (right, wrong) as text, each one token, whose logits are the classes; None: a head or log-ratios.
      card: the tokens of each step as the model card's code reads them, where that differs; its scores are cumulative.
    """

    kind: Kind
    text: TextLayout
    classes: tuple[str, ...] = ()
    labels: tuple[str, str] | None = None
    card: Reader | None = None


def eurus_card_tokens(prompt: Prompt, steps: Sequence[str], tokenizer: Any) -> Tokens:
    """Tokens and steps as the code of EurusPRM's model card reads them.

    The card renders the conversation with the first k steps and its end, and reads the cumulative log-ratio at the
    place of the token before the last, counted in shifted coordinates: the sum begins one token before the response,
    and each step but the last extends by one or two tokens into the next one (its separator counts, and the step's last
    token may be merged with it); the last step includes the token that ends the turn.
    """
    texts = [step.strip() for step in steps]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]  # type: ignore[arg-type]

    def conversation(count: int) -> str:
        answer = {"role": "assistant", "content": "\n\n".join(texts[:count])}
        found: str = tokenizer.render_chat([*messages, answer], add_generation_prompt=False)
        return found

    ids = tokenizer.encode(conversation(len(texts)))
    reads = []
    for count in range(len(texts) + 1):
        text = conversation(count).strip() + ("\n\n" if 0 < count < len(texts) else "")
        reads.append(min(len(tokenizer.encode(text)) - 1, len(ids) - 1))
    step_ids = np.full(len(ids), -1, np.int32)
    for step, (low, high) in enumerate(zip([reads[0] - 2, *reads[1:]], reads[1:], strict=False)):
        step_ids[max(low + 1, 0) : high + 1] = step
    return Tokens(np.asarray(ids, np.int32), step_ids, np.asarray(reads[1:], np.int32))


CRITIQUES = TextLayout(chat="response", separator="", pieces="prompt", end=True)
"""An instruction as the user's message, a critique as the assistant's."""

LAYOUTS: dict[str, PublicLayout] = {
    # Qwen2.5-Math-PRM: two linear layers with ReLU; <extra_0> after every step; right is class 1.
    "qwen_prm": PublicLayout(
        Token(head_layers=2, head_activation="relu", aggregate="prod"),
        TextLayout(
            chat="response",
            strip=True,
            system="Please reason step by step, and put your final answer within \\boxed{}.",
            separator="<extra_0>",
        ),
        ("Qwen2ForProcessRewardModel",),
    ),
    # TRL's stepwise supervision: one linear layer with two classes.
    "token_classification": PublicLayout(
        Token(),
        TextLayout(pieces="steps", begin="bos"),
        ("LlamaForTokenClassification", "Qwen2ForTokenClassification", "Qwen3ForTokenClassification"),
    ),
    # Math-Shepherd: the tag, two Cyrillic letters, after every step; + against - is read there.
    "math_shepherd": PublicLayout(
        Token(),
        TextLayout(join=" ", strip=True, separator=" \u043a\u0438", between="\n"),
        labels=("+", "-"),
    ),
    # RLHFlow: every step is a turn of the user, answered with + or -; read just before the answer.
    "rlhflow": PublicLayout(
        Token(aggregate="prod"), TextLayout(chat="turns", join=" ", strip=True), labels=("+", "-")
    ),
    # EurusPRM and other implicit models: log-ratio to a reference that is given separately.
    "eurus_prm": PublicLayout(
        Implicit(beta=0.001),
        TextLayout(chat="response", strip=True, separator="\n\n", last_separator=False),
        card=eurus_card_tokens,
    ),
    # Language models that write critiques; the instruction is that of the format.
    "thinkprm": PublicLayout(Generative(critique="thinkprm", max_new_tokens=4096), CRITIQUES),
    "genprm": PublicLayout(Generative(critique="genprm", max_new_tokens=2048), CRITIQUES),
    "r_prm": PublicLayout(Generative(critique="r_prm", max_new_tokens=2048), CRITIQUES),
}
"""Name -> layout."""


def load_public(
    path: pathlib.Path, config: Mapping[str, Any], name: str, convention: Convention = "own", mesh: Mesh | None = None
) -> PRM:
    """Loads a public checkpoint; see ``model.load``.

    Args:
      path: its directory.
      config: its ``config.json``, {} where there is none.
      name: of its layout, or "auto".
      convention: see ``model.load``; where a layout reads as its model card does, both are the same.
      mesh: see ``model.load``.

    Raises:
      UserError: an unknown layout, or "auto" where the config does not name one.
    """
    if not config:
        raise UserError(f"no reward model at {path}: expected a directory with config.json and safetensors")
    if name == "auto":
        classes = config.get("architectures") or [""]
        fitting = [key for key, known in LAYOUTS.items() if classes[0] in known.classes]
        if not fitting:
            raise UserError(
                f"{path / 'config.json'} does not say how this model scores (architectures: {classes[0]!r}); name its "
                f"layout: {', '.join(LAYOUTS)}"
            )
        name = fitting[0]
    if name not in LAYOUTS:
        raise UserError(f"unknown layout {name!r} of reward models; {suggest(name, LAYOUTS, 'layouts')}")
    known = LAYOUTS[name]
    model_config, params, head = _load(path, config, known, mesh)
    tokenizer = Tokenizer.load(path)
    check_fits(tokenizer, model_config)
    label_ids = None
    if known.labels is not None:
        label_ids = (_label(tokenizer, known.labels[0]), _label(tokenizer, known.labels[1]))
    kind = known.kind
    if head and isinstance(kind, HeadedKind):
        kind = dataclasses.replace(kind, head_layers=len(head))
    prm = PRM(Spec(kind, model_config, None, label_ids), Weights(params, head, {}), tokenizer, known.text)
    if convention == "card" and known.card is not None:
        prm = dataclasses.replace(prm, reader=known.card, cumulative=True)
    return prm


def _load(
    path: pathlib.Path, config: Mapping[str, Any], known: PublicLayout, mesh: Mesh | None
) -> tuple[ModelConfig, Params, Params]:
    """(architecture, parameters, head) of a directory; the head's tensors, if any, are in the same files."""
    source = Shards(path)
    scores = {name: shape for name, shape in source.shapes.items() if name.startswith(_SCORE)}
    shapes = {name: shape for name, shape in source.shapes.items() if name not in scores}
    plain = _plain_config(config, has_head=checkpoint_layout.TIED_HEAD in shapes)
    model_config = ModelConfig.from_hf(plain)
    checkpoint_layout.check_tensors(model_config, shapes, source=str(path))
    kinds = set(source.dtypes.values())
    dtype = kinds.pop() if len(kinds) == 1 else "float32"
    if mesh is None:
        params = checkpoint_layout.assemble(model_config, source.read, dtype=DTYPES[dtype], place=jnp.asarray)
    else:
        params = assemble_sharded(model_config, source.read, dtype=DTYPES[dtype], mesh=mesh)
    wants_head = isinstance(known.kind, HeadedKind) and known.labels is None
    if wants_head != bool(scores):
        raise UserError(
            f"{path} has {'no tensors' if wants_head else 'tensors'} named {_SCORE}*, which this layout "
            f"{'needs' if wants_head else 'does not have'}; choose another layout"
        )
    return dataclasses.replace(model_config, dtype=dtype), params, _head(path, source, scores, model_config, mesh)  # type: ignore[arg-type]


def _plain_config(config: Mapping[str, Any], *, has_head: bool) -> dict[str, Any]:
    """The config as that of the language model itself."""
    plain = {name: value for name, value in config.items() if name not in ("architectures", "auto_map")}
    if not has_head:
        plain["tie_word_embeddings"] = True  # a classifier without vocabulary head: none is needed
    return plain


def _head(
    path: pathlib.Path, source: Shards, scores: Mapping[str, tuple[int, ...]], config: ModelConfig, mesh: Mesh | None
) -> Params:
    """Linear layers ``score.weight`` or ``score.0.weight``, ``score.2.weight``, ... in their order."""
    if not scores:
        return {}
    prefixes = sorted({name.rpartition(".")[0] for name in scores}, key=lambda name: (len(name), name))
    head: Params = {}
    width = config.hidden_size
    for index, prefix in enumerate(prefixes):
        if f"{prefix}.weight" not in scores:
            raise UserError(f"{path}: {prefix}.weight is missing")
        kernel = np.asarray(source.read(f"{prefix}.weight"), np.float32).T
        bias = np.zeros(kernel.shape[1], np.float32)
        if f"{prefix}.bias" in scores:
            bias = np.asarray(source.read(f"{prefix}.bias"), np.float32)
        if kernel.ndim != 2 or kernel.shape[0] != width or bias.shape != kernel.shape[1:]:
            raise UserError(f"{path}: {prefix} maps {kernel.shape[0]} to {kernel.shape[-1]}, expected {width} inputs")
        head[f"layer_{index}"] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
        width = kernel.shape[1]
    if width != 2:
        raise UserError(f"{path}: the head has {width} outputs, expected 2: (wrong, right)")
    return head if mesh is None else shard_params(head, mesh)


def _label(tokenizer: Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text)
    if not ids:
        raise UserError(f"the label {text!r} gives no token; this tokenizer does not belong to that layout")
    return ids[-1]
