"""What must be sent, and when that is enough: computation only, no input and output."""

from __future__ import annotations

from cvm_migrate.delta._chunks import (
    DIGEST_SIZES,
    ZeroDigests,
    chunk_count,
    chunks,
    digest_of,
)
from cvm_migrate.delta._compare import compare
from cvm_migrate.delta._convergence import (
    Backlog,
    Convergence,
    Forecast,
    Judgement,
    LagMeter,
    PassFacts,
    Verdict,
)
from cvm_migrate.delta._hot import HotBlocks
from cvm_migrate.delta._manifest import Manifest

__all__ = [
    "DIGEST_SIZES",
    "Backlog",
    "Convergence",
    "Forecast",
    "HotBlocks",
    "Judgement",
    "LagMeter",
    "Manifest",
    "PassFacts",
    "Verdict",
    "ZeroDigests",
    "chunk_count",
    "chunks",
    "compare",
    "digest_of",
]
