"""A folder with an encoder and a prompt of every kind, and a service of them."""

import pytest
from fastapi.testclient import TestClient

from ptv2.serving.app import create_app
from tests.serving.work import make_work, new_service


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("work"))


@pytest.fixture
def service(work):
    service = new_service(work)
    yield service
    service.close(5)


@pytest.fixture
def client(service, work):
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client
