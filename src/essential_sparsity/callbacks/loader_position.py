"""Where training stands in its order of batches, in every checkpoint and back.

Lightning keeps a stateful loader's state too, but never restores it when a task asks for `estimated_stepping_batches`
(a schedule does): the loaders are set up before the checkpoint is read then, and the epoch would start afresh.
"""

from typing import Any, Protocol

from pytorch_lightning import Callback


class Stateful(Protocol):
    """A loader that can say and take back its position."""

    def state_dict(self) -> dict[str, Any]:
        """Give the position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a position."""
        ...


class LoaderPosition(Callback):
    """Save and restore the training loader's position."""

    def __init__(self, loader: Stateful) -> None:
        self.loader = loader

    def state_dict(self) -> dict[str, Any]:
        """Give the loader's position."""
        return self.loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the loader's position back; read at its next first batch."""
        self.loader.load_state_dict(state_dict)
