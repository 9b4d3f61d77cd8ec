"""Our training against records of released code."""

import pytest

pytest.register_assert_rewrite("tests.parity.replay")
