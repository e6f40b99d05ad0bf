"""Hand-made samples; nothing of them is in a data set."""

from tallrec.types import Item, Sample

TOWER = Item("1", "Tower, The (1987)")
HARBOUR = Item("2", "Harbour Lights (1991)")
PLUMS = Item("3", "Plum & Plum: It's 2 a.m. (1979)")
ORCHARD = Item("b1", "The Orchard", "Ada North")
SALT = Item("b2", "Salt (Vol. 2)", "J. B. O'Hara")
MAPS = Item("b3", "Maps")


def sample(*history, target=PLUMS, liked=True):
    """A sample whose history is (item, liked) pairs."""
    return Sample("u", tuple(history), target, liked)
