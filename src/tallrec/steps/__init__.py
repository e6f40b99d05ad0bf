"""The steps of a run, where the layers meet: a recipe or options in, files out."""
