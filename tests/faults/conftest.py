"""The fixtures of the integration tests, for those that kill processes and take disks away."""

import importlib.util
import sys
from pathlib import Path

INTEGRATION = Path(__file__).resolve().parents[1] / "integration"
sys.path.insert(0, str(INTEGRATION))

_spec = importlib.util.spec_from_file_location("integration_conftest", INTEGRATION / "conftest.py")
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

pytest_runtest_makereport = _fixtures.pytest_runtest_makereport
watch_log = _fixtures.watch_log
make_stack = _fixtures.make_stack
make_backend = _fixtures.make_backend
