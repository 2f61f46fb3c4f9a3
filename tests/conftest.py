"""What all tests share: reproducible hypothesis runs and no settings from the environment."""

from __future__ import annotations

import os

import hypothesis
import pytest

# The default finds the same examples every time and knows no clock: a loaded machine changes
# nothing. HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile(
    "same",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "explore", hypothesis.settings.get_profile("same"), derandomize=False, max_examples=2000
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither from the environment nor from measurements of earlier runs."""
    for name in [name for name in os.environ if name.startswith("GORGON_")]:
        if name != "GORGON_KERNELS_LIBRARY":  # which build of the native library to test
            del os.environ[name]
    os.environ["GORGON_PROFILE_FOLDER"] = str(tmp_path_factory.mktemp("profiles"))
    os.environ["GORGON_MEASURE_SECONDS"] = "2"
