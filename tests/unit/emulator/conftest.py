"""Fixtures: the emulator, and the official SDK as its client."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx2 as httpx
import openai
import pytest

from connectors.emulator.server import EmulatorOptions, EmulatorServer

Serve = Callable[..., str]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a given location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["location"],
        },
    },
}


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    """The URL of an emulator without limits or faults."""
    with EmulatorServer(EmulatorOptions()) as server:
        yield server.base_url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """The official SDK without retries, which validates every answer against its types."""
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0, _strict_response_validation=True) as sdk:
        yield sdk


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start an emulator with these options; its base_url."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(EmulatorServer(EmulatorOptions(**options))).base_url


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """A plain HTTP client."""
    with httpx.Client(timeout=10) as client:
        yield client
