"""Ends the requests of a vLLM engine at stops."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forklight.sampling.stops import StopCheck


@contextmanager
def ending(llm: Any, stops: StopCheck | None) -> Iterator[None]:
    """Asks `stops` after every token of the requests that are added.

    vLLM's own check of stop strings needs a tokenizer in the engine, and decodes answers as the end of their prompts,
    not alone: the first blank, and the bytes of a character, may be other ones.
    """
    if stops is None:
        yield
        return
    processor = llm.llm_engine.output_processor
    add = processor.add_request

    def add_request(request: Any, *arguments: Any, **more: Any) -> None:
        add(request, *arguments, **more)
        state = processor.request_states[request.request_id]
        state.detokenizer = _Checked(state.detokenizer, stops)

    processor.add_request = add_request
    try:
        yield
    finally:
        del processor.add_request  # the class's own is back


class _Checked:
    """A detokenizer of vLLM's, which ends its request where `stops` say."""

    def __init__(self, detokenizer: Any, stops: StopCheck) -> None:
        self._detokenizer = detokenizer
        self._stops = stops

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detokenizer, name)

    def update(self, new: list[int], stop_terminated: bool) -> str | None:
        """Appends tokens; returns why the request ends, or None."""
        self._detokenizer.update(new, stop_terminated)
        ids: list[int] = self._detokenizer.output_token_ids
        lengths = range(len(ids) - len(new) + 1, len(ids) + 1)
        return "stop" if any(self._stops.ends(ids[:length]) for length in lengths) else None
