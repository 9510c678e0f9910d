"""How this copy of Lepton was installed, and the command that installs it again with an extra.

Lepton is on no package index, so a command that names it has to say where it is: the checkout that it runs from, the
checkout or wheel that pip installed it from and wrote down (PEP 610, `direct_url.json`), or else its wheel's folder.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

DISTRIBUTION = "lepton-edge"
WHEELS = "FOLDER-OF-ITS-WHEEL"  # what a command says where nobody wrote down where the wheel was
_HERE = Path(__file__).resolve().parent.parent


def install_command(extra: str = "") -> str:
    """Returns the command that installs this copy of Lepton again.

    Args:
        extra: The extra that it shall have then. Default: none.
    """
    extras = f"[{extra}]" if extra else ""
    if (folder := checkout()) is not None:
        return f"pip install -e {shlex.quote(f'{folder}{extras}')}"
    if (path := origin()) is not None:
        return f"pip install {shlex.quote(f'{path}{extras}')}"
    return f"pip install {shlex.quote(DISTRIBUTION + extras)} --find-links {WHEELS}"


def checkout() -> Path | None:
    """Returns the source checkout that this copy runs from; None where it was copied into an environment."""
    return _HERE if (_HERE / "pyproject.toml").is_file() else None


def origin() -> Path | None:
    """Returns the checkout or wheel that pip installed it from, where that is known and still there."""
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        record = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
        parts = urlsplit(record.get("url", ""))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):  # a record that is damaged says nothing
        return None
    path = Path(url2pathname(parts.path))
    return path if parts.scheme == "file" and path.exists() else None
