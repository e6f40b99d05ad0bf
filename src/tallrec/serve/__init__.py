"""A run as a service: HTTP API, page and its users' feedback. Needs the extra `tallrec[serve]`."""

from importlib.util import find_spec

_PACKAGES = ("alembic", "fastapi", "prometheus_client", "sqlalchemy", "uvicorn")


def check_installed() -> None:
    """Tells how to install what this package needs.

    Raises:
        ValueError: If some of it is not installed.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ValueError(
            f"serving needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'tallrec[serve]'"
        )
