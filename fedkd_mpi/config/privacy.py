"""The section `privacy`: how updates are protected on their way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedkd_mpi.config import methods
from fedkd_mpi.config.sections import Section


class PrivacyConfig(Section):
    encryption: Literal["none", "aes-gcm"] = Field(
        "none",
        description="aes-gcm: every message is encrypted and authenticated, 28 bytes each (docs/privacy.md)",
    )

    @property
    def encrypts(self) -> bool:
        """Whether messages are encrypted."""
        return self.encryption != "none"

    def problem(self, method: str) -> str | None:
        """Return in one line what these keys cannot do for a method, None where there is nothing."""
        if self.encrypts and not methods.exchanges(method):
            return f"method={method} exchanges nothing: set privacy.encryption=none"
        return None
