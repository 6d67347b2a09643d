"""How long a run goes on trying for a machine."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_dstack.configurations import ServiceConfiguration
from prefect_dstack.domain.retrying import capacity_timeout


@pytest.mark.parametrize(
    ("retry", "seconds"),
    [
        (None, 0),
        (False, 0),
        (True, 3600),
        ({"duration": "2m"}, 120),
        ({"on_events": ["no-capacity"], "duration": "1d"}, 86400),
        ({"on_events": ["error", "interruption"], "duration": "1h"}, 0),
    ],
)
def test_is_as_long_as_the_configuration_says(retry: Any, seconds: float) -> None:
    configuration = ServiceConfiguration.model_validate({"port": 80, "image": "a", "retry": retry})

    assert capacity_timeout(configuration.retry) == seconds
