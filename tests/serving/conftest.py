"""A folder with an encoder and a prompt of every kind, and a service of them."""

import pytest

from tests.serving.work import make_work, new_service


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("work"))


@pytest.fixture
def service(work):
    service = new_service(work)
    yield service
    service.close(5)
