"""Clients of a running moe-serve, with the same methods over HTTP and gRPC.

    from scion.client import Client, GrpcClient

    with Client("http://127.0.0.1:8080") as client:
        print(client.generate("#include <vector>\\n", domain="cpp", max_tokens=40, seed=7).text)
        with client.stream("The king said", domain="en") as chunks:
            for chunk in chunks:
                print(chunk.text, end="", flush=True)

`Client` (HTTP) needs nothing but Python, `GrpcClient` the extra "client".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scion.client.base import BaseClient, Stream
from scion.client.errors import ScionError
from scion.client.http_client import Client
from scion.client.types import Answer, Chunk, Domain, Domains, Finish, Score, Token, TopLogprob, Usage

if TYPE_CHECKING:
    from scion.client.grpc_client import GrpcClient

__all__ = ["Answer", "BaseClient", "Chunk", "Client", "Domain", "Domains", "Finish", "GrpcClient", "ScionError",
           "Score", "Stream", "Token", "TopLogprob", "Usage"]


def __getattr__(name: str) -> Any:
    """GrpcClient is imported when it is first named, so that HTTP needs no grpcio."""
    if name == "GrpcClient":
        from scion.client.grpc_client import GrpcClient

        return GrpcClient
    raise AttributeError(f"module 'scion.client' has no attribute {name!r}")
