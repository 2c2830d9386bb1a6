"""Compare our alpha with that of the library `krippendorff`, on random data with missing values.

pip install krippendorff      (GPL-3.0, Python 3.11 or later: not a dependency of this project)
python scripts/krippendorff_agreement.py
"""

from __future__ import annotations

import warnings

import numpy as np

from rlhf_lightning.feedback import krippendorff_alpha

LEVELS = ("nominal", "ordinal", "interval")


def main() -> None:
    import krippendorff

    warnings.simplefilter("ignore", RuntimeWarning)  # if nothing varies, both return NaN
    rng, worst, count = np.random.default_rng(0), 0.0, 0
    for _ in range(200):
        units, raters, values = rng.integers(5, 40), rng.integers(2, 6), rng.integers(2, 5)
        truth = rng.integers(0, values, units)
        data = np.where(rng.random((raters, units)) < 0.6, truth, rng.integers(0, values, (raters, units))).astype(
            float
        )
        data[rng.random((raters, units)) < 0.3] = np.nan
        ours = [[int(value) for value in unit if not np.isnan(value)] for unit in data.T]
        for level in LEVELS:
            theirs = krippendorff.alpha(reliability_data=data, level_of_measurement=level)
            if not np.isnan(theirs):
                worst, count = max(worst, abs(theirs - krippendorff_alpha(ours, level))), count + 1
    print(f"{count} values of alpha, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
