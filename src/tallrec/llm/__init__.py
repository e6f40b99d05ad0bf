"""The language model: backbone, adapter, tuning and scoring."""
