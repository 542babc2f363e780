from galsep.flags import Flag


def test_flags_are_single_bits_with_a_line_each():
    assert [flag.value for flag in Flag] == [1, 2, 4, 8, 16, 32]
    for flag in Flag:
        # Fits a FITS card beside the name.
        assert 0 < len(flag.description) <= 80 - 10 - 20 - 3
        assert "\n" not in flag.description


def test_flags_combine_as_integers():
    both = Flag.IMAGE_EDGE | Flag.OVERLAPS
    assert both == 20
    assert Flag.OVERLAPS in both
    assert Flag.MASKED_PIXELS not in both


def test_legend_lists_all():
    assert Flag.legend() == {
        "network_missed": 1,
        "larger_than_cutout": 2,
        "image_edge": 4,
        "masked_pixels": 8,
        "overlaps": 16,
        "out_of_domain": 32,
    }
