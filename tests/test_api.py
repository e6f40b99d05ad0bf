import tallrec


def test_every_public_name_is_there():
    for name in tallrec.__all__:
        found = getattr(tallrec, name)
        assert found is tallrec.DATASETS or found.__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(tallrec, "magic")
