"""Attention windows in a ``config.json``: which layers have one, in the ways in which model classes say so."""

from collections.abc import Callable, Mapping
from typing import Any

from prm_jax.models.families.fields import integer, refuse

FULL, SLIDING = "full_attention", "sliding_attention"
_MOST_LAYERS = 10_000
_MAX_WINDOW_LAYERS = 28  # layers before the first with a window, where the field is left out

Windows = tuple[int | None, ...]


def layer_count(config: Mapping[str, Any]) -> int:
    """Layers of a model whose layers differ, each of which is described."""
    layers = integer(config, "num_hidden_layers")
    if layers > _MOST_LAYERS:
        refuse("num_hidden_layers", layers, f"expected at most {_MOST_LAYERS} layers that differ from each other")
    return layers


def no_windows(config: Mapping[str, Any], name: str) -> None:
    """Refuses windows in a family whose class has none."""
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != FULL for kind in kinds)):
        refuse("layer_types", kinds, f"expected a list of {FULL} only")
    if window is not None and kinds is None and config.get("use_sliding_window", True):
        refuse("sliding_window", window, f"architecture {name!r} has no attention windows")


def optional_windows(config: Mapping[str, Any], default: Callable[[int], bool] | None = None) -> Windows:
    """The window of every layer where ``use_sliding_window`` asks for them; () where no layer has one.

    Args:
      config: a ``config.json``.
      default: from a layer to whether it has a window, where ``layer_types`` is missing; None: those from
        ``max_window_layers`` on.
    """
    if default is None:
        first = integer(config, "max_window_layers", default=_MAX_WINDOW_LAYERS, least=0)
        default = first.__le__
    asked = config.get("use_sliding_window", False) and config.get("sliding_window") is not None
    return typed_windows(config, default, asked=asked)


def typed_windows(config: Mapping[str, Any], default: Callable[[int], bool], *, asked: bool = True) -> Windows:
    """The window of every layer by ``layer_types``; () where no layer has one.

    Args:
      config: a ``config.json``.
      default: from a layer to whether it has a window, where ``layer_types`` is missing.
      asked: False checks the fields alone.
    """
    layers, kinds = integer(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds)
    ):
        refuse("layer_types", kinds, f"expected a list of {FULL} and {SLIDING}, one per layer")
    counted = range(min(layers, _MOST_LAYERS))
    sliding = [kind == SLIDING for kind in kinds] if kinds is not None else [default(layer) for layer in counted]
    if not asked or not any(sliding):
        return ()
    window, _ = integer(config, "sliding_window"), layer_count(config)
    return tuple(window if one else None for one in sliding)


def shared_window(config: Mapping[str, Any], name: str) -> int | None:
    """The window of all layers, in families whose class gives every layer the same one."""
    kinds = config.get("layer_types")
    if kinds is not None:
        refuse("layer_types", kinds, f"architecture {name!r} has one window for all layers: sliding_window")
    return None if config.get("sliding_window") is None else integer(config, "sliding_window")


def written_windows(windows: Windows) -> dict[str, Any]:
    """``sliding_window`` and ``layer_types``; the windows have at most one size."""
    size = next((window for window in windows if window is not None), None)
    return {"sliding_window": size, "layer_types": [FULL if window is None else SLIDING for window in windows]}
