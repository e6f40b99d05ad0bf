"""Many machines: tables in buckets of users on any storage, worked off by Ray's actors.

Plain actors, not Ray Data. Ray Data streams rows through operators, but what a restart needs is a
bucket that is written whole or not at all, tried again elsewhere when its node dies, and a bad row
set aside instead of its block: `groupby` materializes all rows before the first one is scored, its
writers commit by block and not by bucket, and `max_errored_blocks` drops all rows of a block. It
wants pandas and PyArrow too, where Ray alone is a small package.
"""
