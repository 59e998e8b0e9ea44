"""What a user may choose about the processes of a run; a run that is one process needs none of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where the processes of a run stand, and how long each may be silent."""

    placement: Literal["colocated", "split"] = "colocated"
    """Whether engines share the GPUs of the actor's ranks or have their own."""

    address: str = ""
    """A Ray cluster that this run has for itself, as in `10.0.0.1:6379`; empty starts Ray on this machine alone."""

    machines: Annotated[int, Ge(0)] = 0
    """How many machines that cluster must have before the run begins; 0 takes those that are there."""

    cpus_per_rank: Annotated[int, Ge(0)] = 0
    """Cores that each rank must have for itself; 0 lets ranks share them."""

    heartbeat_s: Annotated[float, Gt(0)] = 10.0
    """How often a rank that is waited for must show that it lives; two missed beats end the run."""

    start_s: Annotated[float, Gt(0)] = 1200.0
    """How long the ranks may take to start and to read their weights."""

    step_s: Annotated[float, Gt(0)] = 7200.0
    """How long the ranks may take to learn from a batch, to score one, or to save or load a checkpoint."""

    publish_s: Annotated[float, Gt(0)] = 600.0
    """How long the weights may take from the ranks to the engine."""
