"""scikit-learn estimators: a trained network behind `fit` and `predict`.

Fitting trains nothing: the table becomes numbers, and the network encodes it once per member of an
ensemble. Predictions of members are pooled as mixtures (`priors.MixturePosterior`), never
as averaged means or parameters. Members see the same data differently: other orders of the columns
(other column codes in networks of cells), other numbers for the classes, power
transforms. Networks are not exactly invariant to these, and what differs is averaged out.

A table may hold text, booleans, pandas categories and missing values. Categories are numbered by
the training data; one that is new in a query counts as missing. A network that was trained
without missing values (`Coverage.missing`) gets the mean of the training data in their place,
or the most frequent category.

Like `PFN.condition`, `fit` warns of data that are unlike the network's prior.

Everything runs in float64 by default: predictions then depend neither on the other queries of a
call nor on how targets are scaled, beyond rounding that nobody sees.

This package needs scikit-learn, the extra `sklearn`; `pfn` imports without it.
"""

try:
    from sklearn.utils.validation import validate_data as _since_1_6  # noqa: F401
except ImportError as error:
    raise ImportError(
        "PFNRegressor and PFNClassifier need scikit-learn 1.6 or newer: "
        "pip install 'wideprior[sklearn]'."
    ) from error

from pfn.estimators.classifier import PFNClassifier
from pfn.estimators.regressor import PFNRegressor

__all__ = ["PFNClassifier", "PFNRegressor"]
