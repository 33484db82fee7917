"""Everything that a server's routes use: the model, its thread, its text, and who may do what."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from kvtrie.api.http.door import Door
from kvtrie.api.server.checked_request import Served
from kvtrie.api.server.generation import Generation
from kvtrie.api.server.replies import ModelCard
from kvtrie.api.server.serve_metrics import ServeMetrics
from kvtrie.api.server.server_config import ServerConfig
from kvtrie.api.server.text_pool import TextPool


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model behind one server."""

    config: ServerConfig
    generation: Generation
    served: Served
    door: Door
    metrics: ServeMetrics
    pool: TextPool = field(default_factory=TextPool)
    """For bodies and prompts."""
    looking: TextPool = field(default_factory=lambda: TextPool(1))
    """For snapshots: one at a time, as each is a copy of the tree."""
    started_at: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds."""

    def cards(self) -> list[ModelCard]:
        """What /v1/models shows, a card for each name."""
        return [
            ModelCard(
                id=name,
                created=self.started_at,
                root=self.config.source,
                max_model_len=self.served.longest,
            )
            for name in self.config.names
        ]
