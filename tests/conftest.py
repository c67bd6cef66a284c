import pytest

from tests.databases import database, database_url, postgres, postgres_url, sqlite_url

__all__ = ["database", "database_url", "postgres", "postgres_url", "sqlite_url"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=5, help="kill -9 so many times in each test of tests/faults"
    )
    parser.addoption(
        "--evaluations",
        type=int,
        default=100_000,
        help="evaluations in the tables on which query plans are checked",
    )


@pytest.fixture(scope="session")
def evaluations(request: pytest.FixtureRequest) -> int:
    """How many evaluations the large tables hold."""
    number: int = request.config.getoption("--evaluations")
    return number


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How often a test kills its processes."""
    number: int = request.config.getoption("--kills")
    return number
