"""Figures that the paper publishes, to stand beside those measured here.

Bao et al., "TALLRec: An Effective and Efficient Tuning Framework to Align Large Language Model with
Recommendation", RecSys 2023, Table 1, https://doi.org/10.1145/3604915.3608857. AUC on the paper's
own splits; TALLRec there is LLaMA-7B tuned on instructions and then on shots.
"""

SHOTS = (16, 64, 256)
PAPERS_MODEL = "TALLRec, LLaMA-7B"

_MOVIE = {
    "gru4rec": (0.4907, 0.4987, 0.5289),
    "caser": (0.4968, 0.5106, 0.5420),
    "sasrec": (0.5043, 0.5048, 0.5225),
    "dros": (0.5076, 0.5154, 0.5407),
    "gru-bert": (0.5085, 0.5165, 0.5344),
    "dros-bert": (0.5021, 0.5171, 0.5394),
    PAPERS_MODEL: (0.6724, 0.6748, 0.7198),
}
_BOOK = {
    "gru4rec": (0.4895, 0.4964, 0.4986),
    "caser": (0.4984, 0.4972, 0.4957),
    "sasrec": (0.4948, 0.5006, 0.5020),
    "dros": (0.4928, 0.4913, 0.4913),
    "gru-bert": (0.5007, 0.4964, 0.4979),
    "dros-bert": (0.5007, 0.4898, 0.5020),
    PAPERS_MODEL: (0.5636, 0.6039, 0.6438),
}

TABLE_1: dict[str, dict[str, dict[int, float]]] = {
    domain: {name: dict(zip(SHOTS, figures, strict=True)) for name, figures in rows.items()}
    for domain, rows in (("movie", _MOVIE), ("book", _BOOK))
}
"""AUC (0 to 1) by domain, system and shots."""
