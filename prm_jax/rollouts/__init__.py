"""Sampling for searches, labels and training: engines in this process or on a server, behind one protocol.

Names are imported on first use, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from prm_jax.lazy_names import lazy_attribute

if TYPE_CHECKING:
    from prm_jax.rollouts.completion_answer import Completion, CompletionRequest
    from prm_jax.rollouts.completions import CompletionServer
    from prm_jax.rollouts.engine import Engine, EngineStats, Request, Response, Ticket, sample_all
    from prm_jax.rollouts.environments import (
        Environment,
        Episode,
        EpisodePlayer,
        EpisodeStart,
        Feedback,
        Turn,
        TurnLimits,
        play,
    )
    from prm_jax.rollouts.episodes import EpisodePolicy
    from prm_jax.rollouts.loading import engine_on_server, load_local_policy, load_remote_policy, make_policy
    from prm_jax.rollouts.local import Batching, LocalEngine
    from prm_jax.rollouts.policy import STREAMS, TaskPolicy, step_boundary, stop_sets
    from prm_jax.rollouts.remote import RemoteEngine
    from prm_jax.rollouts.remote_responses import RemoteResponse
    from prm_jax.rollouts.remote_source import RemoteSource
    from prm_jax.rollouts.samples import generate_with
    from prm_jax.rollouts.sampling_options import Connection, SamplingOptions, StepOptions
    from prm_jax.rollouts.server_options import ServerOptions
    from prm_jax.rollouts.server_process import ServerProcess
    from prm_jax.rollouts.slot_options import SlotStats, SlotTuning
    from prm_jax.rollouts.slot_rows import SlotResponse
    from prm_jax.rollouts.slots import SlotEngine
    from prm_jax.rollouts.tasks import Problem, Splitter, Task, Verdict
    from prm_jax.rollouts.text_engine import TextEngine
    from prm_jax.rollouts.values import AnswerValues, Roller, count_correct
    from prm_jax.rollouts.weight_updates import AdapterUpdates, Folder, FullUpdates, Probe, RestartUpdates

_HOME = {
    "AdapterUpdates": "weight_updates",
    "AnswerValues": "values",
    "Batching": "local",
    "Completion": "completion_answer",
    "CompletionRequest": "completion_answer",
    "CompletionServer": "completions",
    "Connection": "sampling_options",
    "Engine": "engine",
    "EngineStats": "engine",
    "Environment": "environments",
    "Episode": "environments",
    "EpisodePolicy": "episodes",
    "EpisodePlayer": "environments",
    "EpisodeStart": "environments",
    "Feedback": "environments",
    "Folder": "weight_updates",
    "FullUpdates": "weight_updates",
    "LocalEngine": "local",
    "Probe": "weight_updates",
    "Problem": "tasks",
    "RemoteEngine": "remote",
    "RemoteResponse": "remote_responses",
    "RemoteSource": "remote_source",
    "Request": "engine",
    "Response": "engine",
    "RestartUpdates": "weight_updates",
    "Roller": "values",
    "STREAMS": "policy",
    "SamplingOptions": "sampling_options",
    "ServerOptions": "server_options",
    "ServerProcess": "server_process",
    "SlotEngine": "slots",
    "SlotResponse": "slot_rows",
    "SlotStats": "slot_options",
    "SlotTuning": "slot_options",
    "Splitter": "tasks",
    "StepOptions": "sampling_options",
    "Task": "tasks",
    "TaskPolicy": "policy",
    "Turn": "environments",
    "TurnLimits": "environments",
    "TextEngine": "text_engine",
    "Ticket": "engine",
    "Verdict": "tasks",
    "count_correct": "values",
    "engine_on_server": "loading",
    "generate_with": "samples",
    "load_local_policy": "loading",
    "load_remote_policy": "loading",
    "make_policy": "loading",
    "sample_all": "engine",
    "play": "environments",
    "step_boundary": "policy",
    "stop_sets": "policy",
}

__all__ = [
    "STREAMS",
    "AdapterUpdates",
    "AnswerValues",
    "Batching",
    "Completion",
    "CompletionRequest",
    "CompletionServer",
    "Connection",
    "Engine",
    "EngineStats",
    "Environment",
    "Episode",
    "EpisodePolicy",
    "EpisodePlayer",
    "EpisodeStart",
    "Feedback",
    "Folder",
    "FullUpdates",
    "LocalEngine",
    "Probe",
    "Problem",
    "RemoteEngine",
    "RemoteResponse",
    "RemoteSource",
    "Request",
    "Response",
    "RestartUpdates",
    "Roller",
    "SamplingOptions",
    "ServerOptions",
    "ServerProcess",
    "SlotEngine",
    "SlotResponse",
    "SlotStats",
    "SlotTuning",
    "Splitter",
    "StepOptions",
    "Task",
    "TaskPolicy",
    "TextEngine",
    "Ticket",
    "Turn",
    "TurnLimits",
    "Verdict",
    "count_correct",
    "engine_on_server",
    "generate_with",
    "load_local_policy",
    "load_remote_policy",
    "make_policy",
    "play",
    "sample_all",
    "step_boundary",
    "stop_sets",
]


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _HOME, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
