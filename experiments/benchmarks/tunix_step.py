"""Tunix's half of the training-step benchmark: its Llama, its GRPO loss, its trainer's compiled step.

Put together as its GRPO learner does it (`GRPOLearner.__init__` and `_generate_and_compute_advantage` of
google-tunix 0.1.7), without the cluster and the sampling engine that the learner would also want.
"""

import tempfile
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import algo_core, common
from tunix.rl.grpo.grpo_learner import GRPOConfig, TrainExample
from tunix.rl.trainer import Trainer
from tunix.sft.metrics_logger import MetricsLoggerOptions
from tunix.sft.peft_trainer import TrainingConfig

from prm_jax.prime import Batch

if TYPE_CHECKING:
    from experiments.benchmarks.train_step import Config, Contender


def make_model(config: "Config", params: Any) -> llama.Llama3:
    """Tunix's Llama with these parameters, copied."""
    sizes = config.model
    heads, width, head_dim = sizes.num_heads, sizes.hidden_size, sizes.head_dim
    model = llama.Llama3(
        llama.ModelConfig(
            num_layers=sizes.num_layers, vocab_size=sizes.vocab_size, embed_dim=width,
            hidden_dim=sizes.intermediate_size, num_heads=heads, head_dim=head_dim, num_kv_heads=sizes.num_kv_heads,
            rope_theta=int(sizes.rope_theta), norm_eps=sizes.rms_norm_eps,
        ),
        rngs=nnx.Rngs(0),
    )  # fmt: skip

    def put(variable: Any, value: jax.Array) -> None:
        assert variable.value.shape == value.shape, (variable.value.shape, value.shape)
        variable.value = jnp.array(value, copy=True)

    put(model.embedder.input_embedding, params["embed"]["embedding"])
    put(model.final_norm.w, params["final_norm"]["scale"])
    put(model.lm_head.w, params["head"]["kernel"].T)
    for i, layer in enumerate(model.layers):
        own = jax.tree.map(lambda x, i=i: x[i], params["layers"])
        put(layer.input_layernorm.w, own["attn_norm"]["scale"])
        put(layer.post_attention_layernorm.w, own["mlp_norm"]["scale"])
        for name in ("q", "k", "v"):
            kernel = own["attn"][name]["kernel"]
            put(getattr(layer.attn, f"{name}_proj").w, kernel.reshape(width, -1, head_dim))
        put(layer.attn.o_proj.w, own["attn"]["o"]["kernel"].reshape(heads, head_dim, width))
        for name in ("gate", "up", "down"):
            put(getattr(layer.mlp, f"{name}_proj").kernel, own["mlp"][name]["kernel"])
    return model


def make(config: "Config", params: Any, batch: Batch, *, name: str, kl_coef: float) -> "Contender":
    """The step of Tunix's trainer on the batch; with `kl_coef`, scoring by the reference comes before it.

    Losses are averaged over the tokens of the batch (`loss_agg_mode="token-mean"`), as this project's are.
    """
    from experiments.benchmarks.train_step import PAD, Contender, make_optimizer

    model = make_model(config, params)
    prompt, completion = batch.tokens[:, : batch.start], batch.tokens[:, batch.start :]
    mask = batch.mask[:, batch.start :]
    advantages = algo_core.compute_advantages(np.asarray(batch.outcome), config.samples)
    algorithm = GRPOConfig(num_generations=config.samples, beta=kl_coef, loss_agg_mode="token-mean")
    algorithm.temperature = 1.0  # the learner copies it from the rollout's options
    eos = config.vocab_size - 1
    logs = MetricsLoggerOptions(log_dir=tempfile.mkdtemp(prefix="tunix_logs_"))
    options = TrainingConfig(eval_every_n_steps=1_000_000, metrics_logging_options=logs)
    trainer = Trainer(model, make_optimizer(config), options, custom_checkpoint_metadata_fn=dict)
    trainer.with_loss_fn(
        lambda model, train_example, algo_config: algo_core.grpo_loss_fn(
            model, train_example, algo_config=algorithm, pad_id=PAD, eos_id=eos
        ),
        has_aux=True,
    )
    trainer.with_gen_model_input_fn(lambda x: {"train_example": x, "algo_config": algorithm})

    def example(ref_logp: jax.Array | None) -> TrainExample:
        return TrainExample(
            prompt_ids=prompt, prompt_mask=prompt != PAD, completion_ids=completion, completion_mask=mask,
            advantages=jnp.asarray(advantages), ref_per_token_logps=ref_logp, old_per_token_logps=None,
        )  # fmt: skip

    scored = {"prompt_tokens": prompt, "completion_tokens": completion, "pad_id": PAD, "eos_id": eos}
    reference = nnx.split(make_model(config, params))
    ref_logp = common.compute_per_token_logps(*reference, **scored) if kl_coef else None
    lowered = nnx.jit(trainer.create_train_step_fn(), donate_argnames=("optimizer",)).lower(
        trainer.model, trainer.optimizer, example(ref_logp)
    )
    compiled = lowered.compile()
    programs = [getattr(compiled, "compiled", compiled)]
    if kl_coef:
        programs.insert(0, common.compute_per_token_logps.lower(*reference, **scored).compile())
    train_step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    ready = example(None)

    def step() -> dict[str, jax.Array]:
        inputs = example(common.compute_per_token_logps(*reference, **scored)) if kl_coef else ready
        loss, aux, grad_norm = train_step(inputs)
        done = {"loss": loss, "grad_norm": grad_norm, "entropy": aux["entropy"]}
        # The update is part of the same program; one of the new parameters stands for all of them.
        return {**done, "state": model.final_norm.w.value[0]}

    def logp() -> np.ndarray:
        found = common.compute_per_token_logps(*nnx.split(model), **scored)
        return np.asarray(jnp.where(mask, found, 0.0))

    return Contender(f"Tunix: {name}", name, step, logp, programs)
