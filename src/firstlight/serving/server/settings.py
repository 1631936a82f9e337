"""What an operator may set, and what a client may ask for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class Settings(BaseModel):
    """Settings of the server.

    Attributes:
        token: What writers must show; nobody may write if None.
        index: ``auto``, ``exact``, ``hnsw`` or ``ivf``; see :mod:`firstlight.serving.approximate`.
        max_json_bytes: Longest body of a request that is no upload.
        max_upload_bytes: Longest upload, cover and all.
        max_pixels: Largest cover.
        body_seconds: Seconds in which a request must have arrived.
        header_seconds: Seconds in which its first line and headers must have arrived.
        take_seconds: Seconds in which a client must take a part of its answer; who does not is cut off.
        encode_seconds: Seconds that encoding an item may take, after which its process is replaced.
        max_requests: Requests at work at once, more are answered with 503; and bodies that arrive at once, beyond which
            the slowest is let go.
        max_connections: Connections at once. One more takes the place of the one that has waited longest for its next
            request; where all are at work, it is answered with 503.
        max_uploads: Uploads at once.
        max_batch: Lists that are made together.
        poll_seconds: Seconds between two looks for what other processes have written; 0 turns it off.
        shutdown_seconds: Seconds that requests have to finish after a SIGTERM.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: SecretStr | None = None
    index: str = "auto"
    max_json_bytes: int = Field(default=1 << 20, ge=1024)
    max_upload_bytes: int = Field(default=12 << 20, ge=1024)
    max_pixels: int = Field(default=50_000_000, ge=1)
    body_seconds: float = Field(default=20.0, gt=0)
    header_seconds: float = Field(default=10.0, gt=0)
    take_seconds: float = Field(default=20.0, gt=0)
    encode_seconds: float = Field(default=30.0, gt=0)
    max_requests: int = Field(default=256, ge=1)
    max_connections: int = Field(default=1000, ge=1)
    max_uploads: int = Field(default=16, ge=1)
    max_batch: int = Field(default=64, ge=1)
    poll_seconds: float = Field(default=1.0, ge=0)
    shutdown_seconds: int = Field(default=20, ge=1)
