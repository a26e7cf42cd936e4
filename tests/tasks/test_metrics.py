"""Classification and regression metrics against scikit-learn, on random labels and on degenerate ones."""

import numpy as np
import pytest

from bertfast.tasks import metrics

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle")


@pytest.fixture(params=[(2, 0.2), (2, 0.9), (5, 0.4)], ids=str)
def columns(request):
    classes, noise = request.param
    random = np.random.default_rng(7)
    expected = random.integers(0, classes, 200)
    predicted = np.where(random.random(200) < noise, random.integers(0, classes, 200), expected)
    return predicted, expected, classes


def test_classification_agrees_with_sklearn(columns):
    predicted, expected, classes = columns
    got = metrics.classification(predicted, expected, [str(i) for i in range(classes)])
    macro = sklearn.f1_score(expected, predicted, average="macro")
    assert got["accuracy"] == pytest.approx(sklearn.accuracy_score(expected, predicted))
    assert got["macro_f1"] == pytest.approx(macro)
    assert got["matthews"] == pytest.approx(sklearn.matthews_corrcoef(expected, predicted))
    assert tuple(got) == metrics.class_scores(classes)
    assert ("f1" in got) == (classes == 2)
    if classes == 2:
        assert got["f1"] == pytest.approx(sklearn.f1_score(expected, predicted))


def test_confusion_has_labels_as_rows(columns):
    predicted, expected, classes = columns
    assert (metrics.confusion(predicted, expected, classes) == sklearn.confusion_matrix(expected, predicted)).all()


@pytest.mark.filterwarnings("ignore:A single label:UserWarning")  # scikit-learn's
@pytest.mark.parametrize(
    ("predicted", "expected"),
    [([0, 0, 0], [0, 1, 0]), ([1, 1], [1, 1]), ([0, 0], [1, 1]), ([0, 0], [0, 0])],
)
def test_columns_of_one_value(predicted, expected):
    got = metrics.classification(predicted, expected, ["a", "b"])
    assert got["matthews"] == sklearn.matthews_corrcoef(expected, predicted)
    assert got["f1"] == sklearn.f1_score(expected, predicted, zero_division=0)


def test_macro_f1_leaves_out_a_class_that_never_occurs():
    assert metrics.macro_f1([0, 1], [0, 1], classes=3) == 1.0


def test_correlations():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(3)
    a = random.normal(size=50).round(1)  # rounded, so that ranks are shared
    b = (a + random.normal(size=50)).round(0)
    got = metrics.regression(a, b)
    assert got["pearson"] == pytest.approx(stats.pearsonr(a, b)[0])
    assert got["spearman"] == pytest.approx(stats.spearmanr(a, b)[0])
    assert got["mse"] == pytest.approx(sklearn.mean_squared_error(b, a))
    assert metrics.pearson([1.0, 1.0], [0.0, 2.0]) == 0.0


@pytest.mark.parametrize(("predicted", "message"), [([], "nothing to score"), ([1, 0, 1], "one shape")])
def test_unusable_columns_are_refused(predicted, message):
    with pytest.raises(ValueError, match=message):
        metrics.accuracy(predicted, [] if not predicted else [1])
