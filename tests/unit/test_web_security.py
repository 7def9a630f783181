"""Who is let in: Host, origin, token, CSRF; and what a browser may do with the answers."""

from __future__ import annotations

import pytest

from kronos_qlib.errors import ConfigError
from kronos_qlib.webui.app import make_app
from kronos_qlib.webui.security import CSRF, POLICY, Guard, is_loopback
from kronos_qlib.webui.service import Places, Service

TOKEN = "a-token-of-the-owner"
HERE = {"Host": "127.0.0.1:8000"}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    made = Service(Places(store=tmp_path_factory.mktemp("kept")))
    yield made
    made.close()


@pytest.fixture
def client(service):
    return make_app(service).test_client()


@pytest.fixture
def guarded(service):
    return make_app(service, Guard("0.0.0.0", TOKEN)).test_client()


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.2", "[::1]"]
)
def test_this_machine_is_let_in(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.0.7:8000",
        "0.0.0.0:8000",
        "user@evil.example",
        "[::",
    ],
)
def test_another_name_for_this_machine_is_refused(client, host):
    """DNS rebinding: the attacker's name leads here, and the browser thinks it is his site."""
    answer = client.get("/health", headers={"Host": host})
    assert answer.status_code in (400, 403)
    assert answer.mimetype == "application/problem+json"


def post(client, headers, path="/models/load", body=None):
    return client.post(path, json=body or {"checkpoint": "none"}, headers={**HERE, **headers})


def csrf_of(client, headers=HERE):
    page = client.get("/", headers={**headers, "Accept": "text/html"}).text
    return page.split('name="csrf" content="')[1].split('"')[0]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9000"},
        {"Origin": "file://127.0.0.1:8000"},
        {"Origin": "http://[::1"},
        {"Origin": "http://127.0.0.1:8000@evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "cross-site"},
    ],
)
def test_other_sites_change_nothing_even_with_the_page_s_token(client, headers):
    assert post(client, {**headers, CSRF: csrf_of(client)}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://127.0.0.1:8000"}, {"Sec-Fetch-Site": "same-origin"}],
)
def test_a_browser_needs_the_token_of_the_page(client, headers):
    assert post(client, headers).status_code == 403
    assert post(client, {**headers, CSRF: "0" * 64}).status_code == 403
    assert post(client, {**headers, CSRF: "ö"}).status_code == 403
    assert post(client, {**headers, CSRF: csrf_of(client)}).status_code == 422  # no such checkpoint


def test_a_program_without_a_browser_needs_none(client):
    assert post(client, {}).status_code == 422


def test_deleting_is_guarded_too(client):
    answer = client.delete(
        f"/forecasts/{'0' * 20}", headers={**HERE, "Origin": "http://evil.example"}
    )
    assert answer.status_code == 403


def test_a_link_from_elsewhere_opens_a_page_and_reads_nothing(client):
    away = {**HERE, "Sec-Fetch-Site": "cross-site"}
    visit = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}
    assert client.get("/", headers={**away, **visit}).status_code == 200
    assert client.get("/forecasts", headers={**away, "Sec-Fetch-Mode": "cors"}).status_code == 403
    framed = {**away, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert client.get("/", headers=framed).status_code == 403


@pytest.mark.parametrize("path", ["/", "/health", "/nothing", "/universe", "/openapi/openapi.json"])
def test_every_answer_has_the_policy_and_no_cors(client, path):
    answer = client.get(path, headers={**HERE, "Origin": "http://127.0.0.1:8000"})
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


def test_the_policy_allows_no_inline_script_and_no_other_host():
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert "default-src 'none'" in POLICY


@pytest.mark.parametrize("path", ["/", "/universe", "/runs", "/kept", "/kept/abc", "/nothing"])
def test_pages_have_no_inline_script_or_style(client, path):
    page = client.get(path, headers={**HERE, "Accept": "text/html"}).text
    for part in page.split("<script")[1:]:
        assert " src=" in part.split(">")[0]
        assert part.split(">", 1)[1].split("</script>")[0].strip() == ""
    assert "<style" not in page
    assert " style=" not in page
    assert "onclick" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_names_in_addresses_are_escaped(client):
    for path in ("/kept/%3Cscript%3Ealert(1)%3C%2Fscript%3E", "/%3Cb%3E"):
        page = client.get(path, headers={**HERE, "Accept": "text/html"}).text
        assert "<script>alert" not in page
        assert "<b>" not in page


def test_another_interface_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.0.7", "myhost"):
        with pytest.raises(ConfigError, match="--token"):
            Guard(host)
    with pytest.raises(ConfigError, match="16"):
        Guard("0.0.0.0", "short")
    Guard("127.0.0.1")
    Guard("localhost")
    Guard("::1")
    assert not is_loopback("127.0.0.1.evil.example")


def test_with_a_token_nothing_is_answered_without_it(guarded):
    for path in ("/", "/health", "/openapi/openapi.json", "/static/x/y.js", "/nothing"):
        answer = guarded.get(path, headers={"Host": "192.168.0.7:8000"})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in answer.text


@pytest.mark.parametrize("given", ["Bearer wrong-token-of-nobody", "Bearer ", "Basic x", TOKEN])
def test_a_wrong_token_is_none(guarded, given):
    answer = guarded.get("/health", headers={"Host": "10.0.0.1", "Authorization": given})
    assert answer.status_code == 401


def test_a_program_sends_the_token_as_bearer(guarded):
    headers = {"Host": "10.0.0.1", "Authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/health", headers=headers).status_code == 200


def test_a_browser_gets_a_session_and_its_address_loses_the_token(guarded):
    host = {"Host": "10.0.0.1:8000"}
    first = guarded.get(f"/?token={TOKEN}", headers=host)
    assert first.status_code == 303
    assert first.headers["Location"] == "/"
    cookie = first.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    session = {**host, "Cookie": cookie.split(";")[0]}
    assert guarded.get("/health", headers=session).status_code == 200
    assert post(guarded, {**session, "Sec-Fetch-Site": "same-origin"}).status_code == 403
    # A session of a browser that sends neither Origin nor Sec-Fetch-Site.
    assert post(guarded, session).status_code == 403


def test_the_token_is_not_taken_from_the_address_of_a_change(guarded):
    assert post(guarded, {"Host": "10.0.0.1"}, f"/models/load?token={TOKEN}").status_code == 401


def test_static_files_are_kept_for_ever_and_only_what_is_meant(client):
    page = client.get("/", headers={**HERE, "Accept": "text/html"}).text
    address = page.split('href="/static/')[1].split('"')[0]
    answer = client.get(f"/static/{address}", headers=HERE)
    assert answer.status_code == 200
    assert "immutable" in answer.headers["Cache-Control"]
    again = client.get(
        f"/static/{address}", headers={**HERE, "If-None-Match": answer.headers["ETag"]}
    )
    assert again.status_code == 304
    digest = address.split("/")[0]
    for path in (
        f"/static/{digest}/../app.py",
        f"/static/{digest}/%2e%2e/app.py",
        f"/static/{digest}/..%5capp.py",
        f"/static/{digest}//etc/passwd",
        "/static/other/page.css",
        f"/static/{digest}/nothing.js",
    ):
        assert client.get(path, headers=HERE).status_code in (308, 404)
