"""view/strip.py: curves where the samples are, colours where the evidence is, nothing lost and nothing invented."""

import numpy as np
import pytest
from PIL import Image

from camlucida import view
from camlucida.errors import InputError
from camlucida.view.page import page, tiled
from camlucida.view.strip import _Plan, _step


def drawn(signal: np.ndarray, heat: np.ndarray, **look: object) -> tuple[np.ndarray, int]:
    """The strip without words, and where its first sample begins."""
    made = np.asarray(view.strip(signal, heat, bare=True, **look), int)  # type: ignore[arg-type]
    names = look.get("labels") or (["signal"] if len(signal) == 1 else [f"channel {k}" for k in range(len(signal))])
    return made, _Plan(len(signal), signal.shape[1], made.shape[1], names).left + 2  # type: ignore[arg-type]


def dark(made: np.ndarray) -> np.ndarray:
    return made.max(-1) < 110


def test_the_colour_stands_behind_the_samples_that_have_the_evidence() -> None:
    heat = np.zeros(100)
    heat[70:75] = 1
    made, left = drawn(np.zeros((1, 100)), heat)
    row = made[20, left + 2 : -2]  # away from the curve, which is flat in the middle
    coloured = np.flatnonzero(np.ptp(row, -1) > 20) + 2
    wide = made.shape[1] - left
    assert coloured[0] == pytest.approx(0.70 * wide, abs=2) and coloured[-1] == pytest.approx(0.75 * wide, abs=2)
    assert (row[: int(0.69 * wide)] == 255).all()  # paper where there is none
    hot = made[20, left + int(0.725 * wide)]
    assert hot[0] > hot[2] + 50  # and the red of the bar's end where there is most


def test_the_curve_goes_through_the_samples() -> None:
    signal = np.array([[0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0]])
    made, left = drawn(signal, np.zeros(8), width=800)
    wide = made.shape[1] - left
    for k, value in enumerate(signal[0]):
        column = left + round((k + 0.5) / 8 * wide)
        rows = np.flatnonzero(dark(made[2:158, column : column + 1])[:, 0]) + 2
        assert abs(rows.mean() - (6 + (1 - value) * 148)) < 6, k


def test_a_single_sample_among_many_is_seen() -> None:
    signal = np.zeros((1, 100_000))
    signal[0, 50_000], signal[0, 20_000] = 1, -1
    made, left = drawn(signal, np.zeros(100_000))
    wide = made.shape[1] - left
    inside = dark(made[:160, left + 2 : -2])
    assert inside[10:20].any(0).nonzero()[0].mean() == pytest.approx(0.5 * wide, abs=3)
    assert inside[140:150].any(0).nonzero()[0].mean() == pytest.approx(0.2 * wide, abs=3)


def test_samples_that_are_no_numbers_break_the_curve() -> None:
    signal = np.arange(40.0)[None].copy()
    signal[0, 10:30] = np.nan
    made, left = drawn(signal, np.zeros(40))
    wide = made.shape[1] - left
    assert not dark(made[3:150, left + int(0.3 * wide) : left + int(0.7 * wide)]).any()
    assert dark(made[3:150, left + 3 : left + int(0.2 * wide)]).any()
    view.strip(np.full((2, 9), np.inf), np.zeros(9))


def test_what_was_never_seen_is_striped_in_every_lane() -> None:
    heat = np.zeros(40)
    heat[20:] = np.nan
    made, left = drawn(np.zeros((2, 40)), heat)
    middle = left + (made.shape[1] - left) // 2
    for rows in (slice(5, 60), slice(170, 220), slice(330, 380)):
        seen, unseen = made[rows, left + 3 : middle - 3], made[rows, middle + 5 : -3]
        assert np.ptp(unseen, -1).max() == 0 and len(np.unique(unseen)) > 1 and unseen.min() < 200
        assert (seen.max(-1) == 255).mean() > 0.9


def test_signed_evidence_goes_up_red_and_down_blue() -> None:
    heat = np.zeros(100)
    heat[20:30], heat[60:70] = 1, -1
    made, left = drawn(np.zeros((1, 100)), heat, signed=True)
    wide = made.shape[1] - left
    lane = made[162:234]
    up, down = left + int(0.25 * wide), left + int(0.65 * wide)
    assert lane[20, up, 0] > lane[20, up, 2] + 50 and (lane[50, up] > 250).all()
    assert lane[50, down, 2] > lane[50, down, 0] + 50 and (lane[20, down] > 250).all()


@pytest.mark.parametrize("channels, tall", [(1, 160), (3, 160), (12, 40), (24, 36)])
def test_every_channel_has_a_lane(channels: int, tall: int) -> None:
    signal = np.random.default_rng(0).normal(size=(channels, 200))
    made, left = drawn(signal, np.zeros(200))
    for k in range(channels):
        lane = made[k * (tall + 2) : k * (tall + 2) + tall, left + 2 : -2]
        assert dark(lane).mean() > 0.005, k
    assert made.shape[0] > channels * (tall + 2) + 72


def test_very_many_channels_are_rows_of_grey() -> None:
    signal = np.zeros((40, 50))
    signal[7, 30:] = 1
    made, left = drawn(signal, np.zeros(50))
    row = made[7 * 12 + 6, left + 2 : -2]
    assert row[10].tolist() == [0, 0, 0] and row[-10].tolist() == [255] * 3
    assert np.ptp(made[20 * 12 + 6, left + 2 : -2]) == 0
    assert view.strip(np.zeros((3000, 10)), np.zeros(10)).height < 900


def test_the_axis_counts_samples_at_round_places() -> None:
    assert [_step(n, 8) for n in (1, 9, 40, 41, 400, 1000, 50_000)] == [1, 2, 5, 10, 50, 200, 10_000]
    made, left = drawn(np.zeros((1, 100)), np.zeros(100))
    ticks = np.flatnonzero(dark(made[237:238])[0])
    assert abs(ticks[0] - left - 0.005 * (made.shape[1] - left)) < 3


def test_lengths_and_labels_must_fit() -> None:
    with pytest.raises(InputError, match=r"\(2, 9\) and \(8,\)"):
        view.strip(np.zeros((2, 9)), np.zeros(8))
    with pytest.raises(InputError, match="2 channels needs as many labels; got 1"):
        view.strip(np.zeros((2, 9)), np.zeros(9), labels=["one"])
    with pytest.raises(InputError, match="200 pixels wide"):
        view.strip(np.zeros((2, 9)), np.zeros(9), width=50)
    with pytest.raises(TypeError, match=r"'titel'.*'title'"):
        view.strip(np.zeros((2, 9)), np.zeros(9), titel="x")  # type: ignore[call-arg]


def test_words_stand_around_the_drawing_and_a_note_across_it() -> None:
    body = Image.new("RGB", (300, 100), "white")
    plain, full = page(body), page(body, title="what", caption="how", top="3.2")
    assert full.height > plain.height > 100 and page(body, bare=True).size == (300, 100)
    noted = np.asarray(page(body, bare=True, note="nothing here"), int)
    assert noted[50, 5].max() < 100 and noted[5, 5].min() == 255
    assert np.asarray(body).min() == 255  # the drawing itself is not written on


def test_rows_of_pictures_of_any_size() -> None:
    red, blue = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (6, 5), "blue")
    made = tiled([[red, blue], [blue]], gutter=1)
    assert made.size == (6 + 1 + 6, 5 + 1 + 5) and made.getpixel((7, 0)) == (0, 0, 255)
    assert made.getpixel((0, 4)) == (255, 255, 255) and made.getpixel((0, 6)) == (0, 0, 255)
