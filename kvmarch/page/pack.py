"""Traces made small: every text is there once, and told by its number."""

__all__ = ["Packer"]

from typing import Any


class Packer:
    """Collects traces; their texts become numbers in :attr:`texts`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.traces: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def add(self, trace: dict[str, Any]) -> None:
        """Add a trace, as :func:`~kvmarch.page.player.trace_data` makes it."""
        tasks = trace["tasks"]
        packed = {
            **trace,
            "start": self._frame(trace["start"]),
            "steps": [self._step(step, tasks) for step in trace["steps"]],
        }
        self.traces.append(packed)

    def _text(self, text: str) -> int:
        number = self._numbers.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number

    def _texts(self, texts: list[str]) -> list[int]:
        return [self._text(text) for text in texts]

    def _step(self, step: dict[str, Any], tasks: list[str]) -> dict[str, Any]:
        packed: dict[str, Any] = {"t": tasks.index(step["task"])}
        for key in ("name", "line", "result"):
            if step[key]:
                packed[key[0]] = self._text(step[key])
        if step["changes"]:
            packed["c"] = self._texts(step["changes"])
        if step["lost"]:
            packed["x"] = step["lost"]
        return packed | self._frame(step)

    def _frame(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Return what has changed, without what has not.

        ``s``: group, label, text and so on, three numbers each; ``g``: group and
        label of rows that are gone; ``T`` and ``G``: tables likewise.
        """
        packed: dict[str, Any] = {}
        if frame["rows"]:
            packed["s"] = [self._text(text) for row in frame["rows"] for text in row]
        if frame["gone"]:
            packed["g"] = [self._text(text) for key in frame["gone"] for text in key]
        if frame["tables"]:
            packed["T"] = {
                name: {
                    **table,
                    "rows": [
                        [self._text(text) for text in row] for row in table["rows"]
                    ],
                }
                for name, table in frame["tables"].items()
            }
        if frame["freed"]:
            packed["G"] = frame["freed"]
        return packed
