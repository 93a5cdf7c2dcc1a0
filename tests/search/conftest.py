"""The careless policy in the place of a model that knows nothing."""

import pytest

from tests.search.careless import Careless, stand_in


@pytest.fixture(scope="session")
def model(carry_model) -> str:
    return carry_model


@pytest.fixture
def careless(monkeypatch):
    stand_in(monkeypatch, Careless())
