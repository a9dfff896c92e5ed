"""ModelMora's client library: `Client` and `AsyncClient`, the errors they raise, and the generated protos.

Imported lazily (PEP 562), so that `import modelmora` costs nothing and needs no gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelmora.aio import AsyncClient as AsyncClient
    from modelmora.client import Client as Client
    from modelmora.errors import ModelMoraError as ModelMoraError
    from modelmora.retry import RetryPolicy as RetryPolicy

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "ModelMoraError", "RetryPolicy", "__version__"]


def __getattr__(name: str) -> Any:
    # Written out, so that the walls see what is imported.
    if name == "Client":
        from modelmora.client import Client

        return Client
    if name == "AsyncClient":
        from modelmora.aio import AsyncClient

        return AsyncClient
    if name == "ModelMoraError":
        from modelmora.errors import ModelMoraError

        return ModelMoraError
    if name == "RetryPolicy":
        from modelmora.retry import RetryPolicy

        return RetryPolicy
    raise AttributeError(f"module 'modelmora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
