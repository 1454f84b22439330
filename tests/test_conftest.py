"""Deprecations of transformers fail a test, whether they are warned of or logged."""

import warnings

import pytest
from transformers.utils import logging


def test_a_logged_deprecation_and_a_deprecated_argument_are_errors_in_whoever_causes_them():
    logger = logging.get_logger("transformers.modeling_utils")
    with pytest.raises(DeprecationWarning, match="`x` are deprecated"):
        logger.warning("`x` are deprecated. Use `y` instead.")
    logger.warning("`x` is unusual.")  # control
    with pytest.raises(FutureWarning):
        warnings.warn("`x` is deprecated and will be removed in version 6.0.0", FutureWarning, stacklevel=1)
    with pytest.warns(FutureWarning):  # control
        warnings.warn("`x` will change", FutureWarning, stacklevel=1)
