import math

import numpy as np
import pytest

from softmaxfree.report.confusion import draw_confusion, most_confused
from softmaxfree.report.curves import curves_of, draw_curves, panels_of
from softmaxfree.report.figures import to_svg

LABELS = {
    "train/loss": ("training loss", 1, 4),
    "val/top1": ("top-1 (%)", 100, 2),
    "val/small": ("AP small (%)", 100, 2),
}


def axes_of(**columns):
    length = max(map(len, columns.values()))
    rows = [{"epoch": e, **{k.replace("_", "/"): v[e] for k, v in columns.items()}} for e in range(length)]
    figure = draw_curves(panels_of(curves_of(rows, LABELS)), "soft_nano on digits")
    figure.canvas.draw()
    return figure.axes


def ticks(axes):
    low, high = axes.get_ylim()
    return [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]


def test_the_axis_is_that_of_the_values():
    (axes,) = axes_of(val_top1=[0.9, 0.95, 0.99])
    low, high = axes.get_ylim()
    assert 89 < low < 90
    assert 99 < high < 100
    assert axes.get_ylabel() == "%"
    assert axes.figure.get_suptitle() == "soft_nano on digits"


@pytest.mark.parametrize("outlier", [1e3, 1e12])
def test_one_loss_far_from_all_others_does_not_squeeze_them(outlier):
    (axes,) = axes_of(train_loss=[outlier, *np.linspace(2, 0.5, 9)])
    low, high = axes.get_ylim()
    assert 0.3 < low < 0.5
    assert 2 < high < 2.3
    assert axes.get_title(loc="right").startswith("outside this axis: 1")


def test_a_percentage_has_no_axis_beyond_100():
    (axes,) = axes_of(val_top1=[0.0, 0.5, 1.0])
    assert axes.get_ylim() == (0, 100)
    assert not axes.get_lines()[0].get_clip_on()  # the point at 100 is whole


def test_a_low_score_of_the_first_epoch_is_on_the_axis():
    (axes,) = axes_of(val_top1=[0.78, 0.973, 0.973, 1.0, 1.0, 1.0])
    assert axes.get_ylim()[0] < 78
    assert axes.get_title(loc="right") == ""
    (axes,) = axes_of(val_top1=[0.1, 0.973, 0.973, 1.0, 1.0, 1.0])
    assert axes.get_ylim()[0] > 97
    assert axes.get_title(loc="right") == "outside this axis: 10"
    assert axes.get_lines()[0].get_clip_on()


def test_losses_beside_each_other_have_axes_of_one_kind():
    rows = [{"epoch": 0, "train/loss": 1.0}, {"epoch": 1, "train/loss": 0.9}]
    figure = draw_curves(panels_of(curves_of(rows, LABELS)), "", logarithmic=True)
    assert figure.axes[0].get_yscale() == "log"


def test_no_curve_is_left_outside():
    (axes,) = axes_of(val_top1=[0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], val_small=[None] * 6 + [0.01])
    low, high = axes.get_ylim()
    assert low < 1
    assert high > 90


def test_a_loss_that_falls_far_is_logarithmic_with_plain_numbers():
    (axes,) = axes_of(train_loss=[5 * 0.6**e for e in range(12)])
    assert axes.get_yscale() == "log"
    assert {"0.05", "0.1", "0.2", "0.5", "1", "2", "5"} <= set(ticks(axes))
    (axes,) = axes_of(train_loss=[1.0, 0.6, 0.4])
    assert axes.get_yscale() == "linear"
    assert all("10^" not in label for label in ticks(axes))


@pytest.mark.parametrize("absent", [math.nan, -1.0, None])
def test_metrics_without_a_value_have_no_line(absent):
    (axes,) = axes_of(val_top1=[0.0, 0.0], val_small=[absent, absent])
    assert [line.get_label() for line in axes.get_lines()] == ["top-1"]  # 0 throughout is a score


def test_a_single_epoch_is_a_point():
    (axes,) = axes_of(val_top1=[0.5])
    assert axes.get_lines()[0].get_marker() == "o"
    assert [label.get_text() for label in axes.get_xticklabels() if label.get_position()[0] == 1] == ["1"]


@pytest.mark.parametrize(("epochs", "steps"), [(4, {1}), (20, {2, 5}), (60, {10}), (160, {20, 50})])
def test_epochs_are_counted_in_round_steps(epochs, steps):
    (axes,) = axes_of(val_top1=np.linspace(0.5, 0.9, epochs).tolist())
    assert set(np.diff(axes.get_xticks())) <= steps


def test_the_counts_of_a_confusion_matrix_have_one_size():
    for counts, size in (([[999, 1], [0, 9999]], 9), ([[23_900, 1], [0, 9]], 7)):
        axes = draw_confusion(np.array(counts), ["a", "b"], "").axes[0]
        assert {text.get_fontsize() for text in axes.texts} == {size}


def test_losses_and_scores_have_axes_of_their_own():
    losses, scores = axes_of(val_top1=[0.5, 0.6], train_loss=[2.0, 1.0])
    assert (losses.get_ylabel(), scores.get_ylabel()) == ("loss", "%")


def test_the_colours_of_a_confusion_matrix_are_parts_of_the_true_class():
    counts = np.array([[90, 10, 0], [0, 0, 0], [1, 0, 3]])
    figure = draw_confusion(counts, ["$a", "b_{", "<c>"], "title")
    axes, bar = figure.axes
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), [[90, 10, 0], [0, 0, 0], [25, 0, 75]])
    assert sorted(text.get_text() for text in axes.texts) == ["1", "10", "3", "90"]
    assert bar.get_ylabel() == "% of the true class"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["$a", "b_{", "<c>"]
    svg = to_svg(lambda: figure, "what it is")
    assert "&lt;c&gt;" in svg
    assert "http" not in svg


def test_many_classes_are_pooled_so_that_no_mistake_vanishes():
    counts = np.diag(np.full(1000, 5))
    counts[7, 900] = 5
    axes = draw_confusion(counts, [str(i) for i in range(1000)], "").axes[0]
    shown = np.asarray(axes.get_images()[0].get_array())
    assert shown.shape == (125, 125)
    assert shown[0, 112] == 50
    assert not axes.texts


def test_the_most_frequent_mistakes_come_first():
    counts = np.array([[9, 2, 0], [5, 9, 0], [0, 1, 9]])
    assert most_confused(counts, 2) == [(1, 0, 5), (0, 1, 2)]
    assert most_confused(counts, 9) == [(1, 0, 5), (0, 1, 2), (2, 1, 1)]
