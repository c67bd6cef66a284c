import pytest

from tests.databases import database, database_url, postgres, postgres_url, sqlite_url

__all__ = ["database", "database_url", "postgres", "postgres_url", "sqlite_url"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=5, help="kill -9 so many times in each test of tests/faults"
    )


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often a test kills its processes."""
    number: int = request.config.getoption("--kills")
    return number
