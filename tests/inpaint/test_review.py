"""The review's server: what it answers, what it refuses; it loses no decision that it confirmed."""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hnpretrain.inpaint.decisions import read_decisions, standing
from hnpretrain.inpaint.folder import Folder
from hnpretrain.inpaint.records import to_json
from hnpretrain.inpaint.review.server import serve
from tests.inpaint.reviewing import Served, add_candidate, decision, make_folder, served

JSON = "application/json"


class Answer:
    """Status, headers and body of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        assert self.status == 200, self.body
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


def request(
    server: Served,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request with these headers and no others of ours."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def get(server: Served, path: str, reviewer: str = "ana") -> Answer:
    return request(server, "GET", path, {"X-Token": server.token, "X-Reviewer": reviewer})


def post(server: Served, value: Any, reviewer: str = "ana", **headers: str) -> Answer:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    ours = {"X-Token": server.token, "X-Reviewer": reviewer, "Content-Type": JSON, **headers}
    return request(server, "POST", "/api/decisions", ours, body)


def candidates(item: Any) -> list[str]:
    """The ids of a proposal's candidates as they are shown."""
    return [each["id"] for each in item["candidates"]]


def asked(proposal: str = "p0-bus", verdict: str = "accept", seen: int = 0, **fields: Any) -> Any:
    plain = {"candidate": "recolor-0", "caption": "a red bus", "new_caption": "a green bus"}
    return {"proposal": proposal, "verdict": verdict, "seen": seen, "note": "", **plain, **fields}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for tests that decide nothing."""
    folder = make_folder(tmp_path_factory.mktemp("shared"))
    (folder.root / "photos" / "secret.txt").write_text("secret")
    (folder.root.parent / "outside.txt").write_text("secret")
    with served(folder) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return make_folder(tmp_path / "set")


def test_the_link_lets_a_browser_in(shared: Served) -> None:
    visit = request(shared, "GET", f"/?token={shared.token}")
    assert (visit.status, visit.headers["location"]) == (303, "/")
    cookie = visit.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=lax" in cookie.lower()
    assert cookie.startswith(f"hnpretrain-review-{shared.port}=")
    page = request(shared, "GET", "/", {"Cookie": cookie.partition(";")[0]})
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert shared.token not in page.text


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/api/hello", "/api/review", "/images/photo/p0-bus"]
)
@pytest.mark.parametrize("token", ["", "wrong", "\u00e9\u00ff", "x" * 5000])
def test_no_token_no_answer(shared: Served, path: str, token: str) -> None:
    refused = [request(shared, "GET", path)]
    if token:
        plain = {"X-Reviewer": "ana", "X-Token": token}
        cookie = {"X-Reviewer": "ana", "Cookie": f"hnpretrain-review-{shared.port}={token}"}
        refused += [request(shared, "GET", path, headers) for headers in (plain, cookie)]
        if token.isascii():
            refused.append(request(shared, "GET", f"{path}?token={token}"))
    # The right one opens the page's address alone; in other places of the address it is no token.
    if path != "/":
        refused.append(request(shared, "GET", f"{path}?token={shared.token}"))
    assert {answer.status for answer in refused} == {403}
    assert all("open that" in answer.text for answer in refused)


@pytest.mark.parametrize(
    "host, status",
    [
        ("127.0.0.1", 200),
        ("localhost:1234", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example:80", 400),
        ("", 400),
    ],
)
def test_hosts_are_this_machine(shared: Served, host: str, status: int) -> None:
    headers = {"Host": host, "X-Token": shared.token}
    assert request(shared, "GET", "/api/hello", headers).status == status


def test_it_listens_on_loopback_alone(shared: Served) -> None:
    wanted = f":{shared.port:04X}"
    tables = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    lines = [line.split() for line in tables.splitlines()]
    listening = [f[1] for f in lines if f[1].endswith(wanted) and f[3] == "0A"]
    assert listening == ["0100007F" + wanted]


@pytest.mark.parametrize(
    "path", ["/", "/page.js", "/api/hello", "/nothing", "/images/photo/p0-bus"]
)
def test_answers_carry_the_policy(shared: Served, path: str) -> None:
    # What is answered, what is refused, and what is not for this host.
    elsewhere = request(shared, "GET", path, {"Host": "evil.example"})
    for answer in (get(shared, path), request(shared, "GET", path), elsewhere):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        kept = path.startswith("/images") and answer.status == 200
        assert answer.headers["cache-control"] == ("private, max-age=120" if kept else "no-store")
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = Path(serve.__code__.co_filename).parent / "page"
    for path in page.iterdir():
        text = path.read_text(encoding="ascii")
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), path
        assert "innerHTML" not in text
        assert " style=" not in text
        assert "<script>" not in text


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("PUT", "/api/decisions", 405),
        ("DELETE", "/api/decisions", 405),
        ("GET", "/api/decisions", 405),
        ("POST", "/api/review", 405),
        ("POST", "/", 405),
        ("POST", "/images/photo/p0-bus", 405),
        ("OPTIONS", "/api/decisions", 405),
        ("GET", "/api", 404),
        ("GET", "/page.html", 404),
        ("GET", "/server.py", 404),
    ],
)
def test_wrong_methods_and_places(shared: Served, method: str, path: str, status: int) -> None:
    headers = {"X-Token": shared.token, "X-Reviewer": "ana", "Content-Type": JSON}
    body = b"{}" if method == "POST" else None
    assert request(shared, method, path, headers, body).status == status


@pytest.mark.parametrize(
    "path",
    [
        "/images/photo/..%2f..%2foutside.txt",
        "/images/photo/../../outside.txt",
        "/images/photo/%2e%2e/proposals.jsonl",
        "/images/photo/secret.txt",
        "/images/photos/secret.txt",
        "/images/mask/p0-bus",
        "/images/candidate/p0-bus",
        "/images/candidate/p0-bus?candidate=../p1-dog/recolor-0",
        "/images/candidate/p0-bus?candidate=%2fetc%2fpasswd",
        "/images/candidate/p0-bus?candidate=recolor-9",
        "/images/photo/p0-bus%00",
        "/api/proposals/..%2f..%2fproposals",
        "/api/proposals/nothing",
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/page.js/../../server.py",
    ],
)
def test_no_path_leads_out(shared: Served, path: str) -> None:
    answer = get(shared, path)
    assert answer.status == 404
    assert "secret" not in answer.text
    assert "root:" not in answer.text


@pytest.mark.parametrize("target", ["../outside.png", "link.png"])
def test_a_record_that_names_a_file_outside(shared: Served, target: str) -> None:
    root = shared.folder.root
    Image.new("RGB", (9, 9)).save(root.parent / "outside.png")
    if not (root / "link.png").is_symlink():
        (root / "link.png").symlink_to(root.parent / "outside.png")
    record = root / "candidates/p2-train/recolor-0.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"image": target}))
    answer = get(shared, "/images/candidate/p2-train?candidate=recolor-0")
    assert answer.status == 400
    assert "lies outside" in answer.text


def test_pictures(shared: Served) -> None:
    photo = get(shared, "/images/photo/p0-bus")
    assert photo.headers["content-type"] == "image/jpeg"
    size = Image.open(io.BytesIO(photo.body)).size
    candidate = get(shared, "/images/candidate/p0-bus?candidate=recolor-1")
    assert candidate.headers["content-type"] == "image/png"
    outline = get(shared, "/images/outline/p0-bus")
    image = Image.open(io.BytesIO(outline.body))
    assert image.size == Image.open(io.BytesIO(candidate.body)).size == size
    tones = {tone for _, tone in image.getcolors() or ()}
    # Nothing, a black line and a white one.
    assert {alpha for _, alpha in tones} == {0, 255}
    assert {gray for gray, alpha in tones if alpha} == {0, 255}


def test_an_outline_lies_on_the_edge_of_the_mask(shared: Served) -> None:
    mask = Image.new("L", (60, 40))
    mask.paste(255, (0, 10, 20, 30))  # up to the picture's border
    mask.save(shared.folder.root / "masks/p1-dog.png")
    image = Image.open(io.BytesIO(get(shared, "/images/outline/p1-dog").body))
    rows = [
        "".join(
            ".#o"[(a > 0) + (a > 0 and v > 0)]
            for v, a in (image.getpixel((x, y)) for x in range(24))
        )
        for y in range(8, 13)
    ]
    assert rows == [
        "." * 24,
        "o" * 21 + "...",
        "#" * 20 + "o...",
        "#" + "." * 18 + "#o...",
        "#" + "." * 18 + "#o...",
    ]


@pytest.mark.parametrize(
    "data, status, kind",
    [
        (b"<!doctype html><script>alert(1)</script>", 400, "text/plain"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", 400, "text/plain"),
        (b"", 400, "text/plain"),
        ("GIF", 200, "image/png"),
        ("BMP", 200, "image/png"),
        ("WEBP", 200, "image/webp"),
        ("cut", 400, "text/plain"),
        ("bomb", 400, "text/plain"),
    ],
)
def test_photos_are_what_they_are_said_to_be(
    shared: Served, data: bytes | str, status: int, kind: str
) -> None:
    root = shared.folder.root
    path, good = root / "photos/p4-pizza.jpg", root / "photos/p3-cat.jpg"
    if data == "cut":
        path.write_bytes(good.read_bytes()[:2000])
    elif data == "bomb":
        Image.new("1", (20000, 20000)).save(path, "PNG")
    elif isinstance(data, str):
        Image.open(good).save(path, data)
    else:
        path.write_bytes(data)
    answer = get(shared, "/images/photo/p4-pizza")
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (status, kind)
    assert get(shared, "/images/photo/p3-cat").status == 200


def test_pictures_are_as_large_as_is_allowed(folder: Folder) -> None:
    size = Image.open(folder.root / "photos/p0-bus.jpg").size
    paths = ["photo/p0-bus", "outline/p0-bus", "candidate/p0-bus?candidate=recolor-0"]
    for less, status in ((0, 200), (1, 400)):
        with served(folder, max_pixels=size[0] * size[1] - less) as server:
            answers = [get(server, f"/images/{path}") for path in paths]
        assert [answer.status for answer in answers] == [status] * 3
        assert all(("too_many_pixels" in str(answer.body)) == (less > 0) for answer in answers)


def test_decisions_of_others_origins_are_refused(folder: Folder) -> None:
    with served(folder) as server:
        body = json.dumps(asked()).encode()
        cookie = {"Cookie": f"hnpretrain-review-{server.port}={server.token}"}
        # What a form, or a script without leave, can send from another page.
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            headers = {**cookie, "X-Reviewer": "ana", "Content-Type": kind}
            assert request(server, "POST", "/api/decisions", headers, body).status == 415
        headers = {**cookie, "Content-Type": JSON}
        assert request(server, "POST", "/api/decisions", headers, body).status == 403
        assert (
            request(server, "POST", "/api/decisions", {**headers, "X-Reviewer": "ana"}).status
            == 400
        )
        headers = {"X-Reviewer": "ana", "Content-Type": JSON}
        assert request(server, "POST", "/api/decisions", headers, body).status == 403
        assert read_decisions(folder) == {}
        headers = {**cookie, "X-Reviewer": "ana", "Content-Type": f"{JSON}; charset=utf-8"}
        assert request(server, "POST", "/api/decisions", headers, body).status == 200


@pytest.mark.parametrize(
    "value, status, problem",
    [
        (b"", 400, "not JSON"),
        (b"[" * 30000, 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        ([], 400, "must be a JSON object"),
        ({}, 400, "field 'proposal' is missing"),
        (asked() | {"reviewer": "bob"}, 400, "unknown field 'reviewer'"),
        (asked() | {"time": 3}, 400, "unknown field 'time'"),
        (asked(seen="0"), 400, "'seen' must be of type int"),
        (asked("nothing"), 404, "no such proposal"),
        (asked("../p0-bus"), 404, "no such proposal"),
        (asked(verdict="adore"), 400, "must be one of accept, reject, skip, undo"),
        (asked(candidate=""), 400, "needs a candidate"),
        (asked(candidate="recolor-9"), 400, "has no candidate"),
        (asked(caption=" "), 400, "a caption is empty"),
        (asked(caption="a green  bus "), 400, "captions are the same"),
        (asked(caption="A green bus."), 400, "captions are the same"),
        (asked(note="two\nlines"), 400, "one line of text"),
        (asked(caption="\ud800"), 400, "one line of text"),
        (asked(caption="x" * 1001), 400, "at most 1000"),
        (asked(verdict="undo"), 409, "nothing to undo"),
        (asked(seen=1), 409, "decided elsewhere"),
        (asked(note="x" * 70000), 413, "more than 65536 bytes"),
    ],
)
def test_decisions_that_are_none(shared: Served, value: Any, status: int, problem: str) -> None:
    answer = post(shared, value)
    assert answer.status == status
    assert problem in answer.text
    assert len(answer.text.splitlines()) == 1
    state = get(shared, "/api/proposals/p0-bus").json["state"]
    assert (state["decision"], state["seen"]) == (None, 0)


def test_a_body_without_a_size_is_bounded_too(shared: Served) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=20) as connection:
        head = (
            f"POST /api/decisions HTTP/1.1\r\nHost: localhost\r\nX-Token: {shared.token}\r\n"
            f"X-Reviewer: ana\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        for _ in range(17):  # 68 KiB, and no end
            connection.sendall(chunk)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("name", ["", "a b", "../ana", "x" * 41, ".ana", "a/b"])
def test_names_are_checked_on_each_request(shared: Served, name: str) -> None:
    for answer in (
        get(shared, "/api/review", name),
        get(shared, "/api/proposals/p0-bus", name),
        post(shared, asked(), name),
    ):
        assert answer.status == 400
        assert "must be 1 to 40 letters" in answer.text


def test_what_is_shown(folder: Folder) -> None:
    with served(folder) as server:
        review = get(server, "/api/review").json
        assert [item["id"] for item in review["items"]] == [
            "p0-bus", "p1-dog", "p2-train", "p3-cat", "p4-pizza",
        ]  # fmt: skip
        assert review["not_shown"] == 1
        item = get(server, "/api/proposals/p0-bus").json
        assert candidates(item) == ["recolor-0"]  # recolor-1 failed
        # JSON knows no infinity, which a PSNR may be.
        assert item["candidates"][0]["checks"]["outside"] == {"value": "inf", "passed": True}
        # `generate` goes on meanwhile.
        add_candidate(folder, "p5-car", "remove-0", Image.new("RGB", (9, 9)))
        assert get(server, "/api/review").json["not_shown"] == 0
        assert candidates(get(server, "/api/proposals/p5-car").json) == ["remove-0"]
    with served(folder, everything=True) as server:
        assert len(get(server, "/api/review").json["items"]) == 6
        # What passes comes first.
        item = get(server, "/api/proposals/p5-car").json
        assert candidates(item) == ["remove-0", "recolor-1"]
        assert [each["passed"] for each in item["candidates"]] == [True, False]


def test_a_failed_candidate_is_shown_to_who_accepted_it(folder: Folder) -> None:
    with served(folder, everything=True) as server:
        for proposal in ("p0-bus", "p5-car"):
            assert post(server, asked(proposal, candidate="recolor-1")).status == 200
        rejected = asked("p1-dog", "reject", candidate="recolor-1")
        assert post(server, rejected).status == 200
    with served(folder) as server:
        # p5-car has no other candidate, and is shown for the sake of this one.
        shown = {
            reviewer: [item["id"] for item in get(server, "/api/review", reviewer).json["items"]]
            for reviewer in ("ana", "bob")
        }
        assert shown["ana"] == [*shown["bob"], "p5-car"]
        ana = {
            name: candidates(get(server, f"/api/proposals/{name}").json) for name in shown["ana"]
        }
        assert ana["p0-bus"] == ["recolor-0", "recolor-1"]
        assert ana["p1-dog"] == ["recolor-0"]
        assert ana["p5-car"] == ["recolor-1"]
        assert candidates(get(server, "/api/proposals/p0-bus", "bob").json) == ["recolor-0"]
        assert post(server, asked("p5-car", "undo", 1, candidate="recolor-1")).status == 200
        assert len(get(server, "/api/review").json["items"]) == 5


def test_damaged_candidates_hide_no_others(folder: Folder) -> None:
    place = folder.root / "candidates/p0-bus"
    (place / "a.json").write_bytes(b'{"id": "a", ')
    (place / "b.json").write_text(json.dumps({"id": "b"}))
    for name, changes in (("c", {"proposal": "p1-dog"}), ("d", {}), ("e", {"id": "../x"})):
        record = json.loads((place / "recolor-0.json").read_text()) | changes
        (place / f"{name}.json").write_text(json.dumps(record))
    (place / "f.json").mkdir()
    (place / "g.json").symlink_to("nowhere")
    with served(folder) as server:
        item = get(server, "/api/proposals/p0-bus").json
        assert candidates(item) == ["recolor-0"]
        for part, name in zip(item["damaged"], "abcefg", strict=False):
            assert f"/{name}.json: " in part or name == "c"
        assert len(item["damaged"]) == 7
        assert len(get(server, "/api/review").json["items"]) == 5


def test_two_reviewers_on_one_server(folder: Folder) -> None:
    with served(folder) as server:
        assert post(server, asked(), "ana").json["others"] == {}
        # Nothing is told of a verdict before one has judged; to skip is no judgement.
        assert get(server, "/api/proposals/p0-bus", "bob").json["state"]["others"] == {}
        assert get(server, "/api/review", "bob").json["agreement"] == []
        assert post(server, asked(verdict="skip"), "bob").json["others"] == {}
        answer = post(server, asked(verdict="reject", seen=1), "bob").json
        assert answer["others"] == {"ana": "accept"}
        assert answer["agreement"] == [
            {"reviewer": "ana", "proposals": 1, "agreed": 0, "kappa": 0.0}
        ]
        # Who takes it back, does not see it either.
        assert post(server, asked(verdict="undo", seen=2), "bob").json["others"] == {}
        assert get(server, "/api/review", "bob").json["items"][0]["verdict"] == "skip"
        assert get(server, "/api/review", "ana").json["items"][0]["verdict"] == "accept"
    made = read_decisions(folder)
    assert [each.verdict for each in made["ana"]] == ["accept"]
    assert [each.verdict for each in made["bob"]] == ["skip", "reject", "undo"]


def test_two_servers_on_one_folder(folder: Folder) -> None:
    with served(folder, "ana") as first, served(folder, "bob") as second:
        assert get(first, "/api/hello").json["reviewer"] == "ana"
        assert post(first, asked(), "ana").status == 200
        refused = post(first, asked(), "bob")
        assert (refused.status, refused.text) == (
            403,
            "this server was started for ana; start one for bob",
        )
        assert post(second, asked(), "bob").json["others"] == {"ana": "accept"}
        assert get(first, "/api/proposals/p0-bus", "ana").json["state"]["others"] == {
            "bob": "accept"
        }
        with served(folder) as third:
            taken = get(third, "/api/review", "ana")
            assert taken.status == 409
            assert "ana.lock is held by process" in taken.text
            assert get(third, "/api/review", "cyd").status == 200
        with (
            pytest.raises(RuntimeError, match=r"ana\.lock is held by process"),
            served(folder, "ana"),
        ):
            pass


def test_who_only_looks_holds_no_name(folder: Folder) -> None:
    with served(folder) as first, served(folder) as second:
        for name in ("ana", "anna", "made-up"):
            for path in ("/api/review", "/api/proposals/p0-bus", "/images/photo/p0-bus"):
                assert get(first, path, name).status == 200
        assert not folder.decisions.exists()
        # The first decision takes the name, and then there is no looking elsewhere.
        assert post(second, asked(note="  of two ", caption=" a  red bus")).status == 200
        assert sorted(path.name for path in folder.decisions.iterdir()) == [
            "ana.jsonl",
            "ana.lock",
        ]
        for answer in (
            post(first, asked("p1-dog")),
            get(first, "/api/review"),
            get(first, "/api/proposals/p0-bus"),
        ):
            assert answer.status == 409
            assert "ana.lock is held by process" in answer.text
        assert get(first, "/api/review", "bob").status == 200
        second.kill()
        # What was decided there is known here.
        assert get(first, "/api/review").json["items"][0]["verdict"] == "accept"
        assert post(first, asked(verdict="reject")).status == 409
        assert post(first, asked(verdict="reject", seen=1)).status == 200
    assert [made.caption for made in read_decisions(folder)["ana"]] == ["a red bus"] * 2


def test_an_answer_that_was_lost_counts_once(folder: Folder) -> None:
    with served(folder) as server:
        first = post(server, asked()).json
        again = post(server, asked()).json
        assert first["seen"] == again["seen"] == 1
        assert post(server, asked(verdict="reject")).status == 409
        assert post(server, asked(verdict="undo", seen=1)).json["decision"] is None
        assert post(server, asked(verdict="undo", seen=1)).json["seen"] == 2
    assert [made.verdict for made in read_decisions(folder)["ana"]] == ["accept", "undo"]


def test_a_file_cut_short_is_told_and_the_review_goes_on(folder: Folder) -> None:
    folder.decisions.mkdir()
    whole = json.dumps(to_json(decision("p1-dog", "reject"))).encode() + b"\n"
    (folder.decisions / "ana.jsonl").write_bytes(whole + whole[:50])
    (folder.decisions / "bob.jsonl").write_bytes(b"[]\n" + whole)
    (folder.decisions / "cyd.jsonl").write_bytes(whole)
    with served(folder) as server:
        review = get(server, "/api/review").json
        assert [item["verdict"] for item in review["items"]] == ["", "reject", "", "", ""]
        notes = "\n".join(review["notes"])
        assert "ana.jsonl: the last line was cut short" in notes
        assert (folder.decisions / "ana.jsonl").read_bytes() == whole + whole[:50]  # only read
        assert "bob.jsonl, line 1: must be a JSON object" in notes
        assert post(server, asked()).status == 200
        assert "put aside in ana.broken-1" in get(server, "/api/review").json["notes"][-1]
        # Of a damaged file nothing is taken for decided.
        damaged = get(server, "/api/review", "bob")
        assert damaged.status == 400
        assert "bob.jsonl, line 1: must be" in damaged.text
    assert (folder.decisions / "ana.broken-1").read_bytes() == whole[:50]
    assert (folder.decisions / "ana.jsonl").read_bytes().startswith(whole + b"{")


def test_ctrl_c_ends_it_with_one_line(folder: Folder) -> None:
    with served(folder, "ana") as server:
        assert post(server, asked()).status == 200
        assert server.interrupt() == (
            0,
            "\nreview stopped; every decision that the page called saved is on the disk\n",
            "",
        )
    assert sorted(path.name for path in folder.decisions.iterdir()) == ["ana.jsonl"]


def test_wrong_use_is_told_at_once(folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no proposals\.jsonl"):
        serve(Folder(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"only='pased' is not one of passed, all.*passed"):
        serve(folder, only="pased")
    with pytest.raises(ValueError, match="max_pixels=0: between 1 and"):
        serve(folder, max_pixels=0)
    with pytest.raises(ValueError, match="port=70000"):
        serve(folder, port=70000)
    with pytest.raises(ValueError, match="must be 1 to 40 letters"):
        serve(folder, reviewer="a b")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1: .*0 for any free one"):
            serve(folder, port=port)


def test_a_server_that_is_killed_loses_nothing_that_it_confirmed(folder: Folder) -> None:
    moments = random.Random(1)
    ids = ["p0-bus", "p1-dog", "p2-train", "p3-cat", "p4-pizza"]
    confirmed: dict[str, list[str]] = {name: [] for name in ids}

    def review(server: Served) -> None:
        """Decides on and on, until there is no answer."""
        while True:
            for name in ids:
                try:
                    seen = get(server, f"/api/proposals/{name}").json["state"]["seen"]
                    note = f"{len(confirmed[name])}"
                    verdict = ("accept", "reject", "skip")[seen % 3]
                    if post(server, asked(name, verdict, seen, note=note)).status == 200:
                        confirmed[name].append(note)
                except (OSError, http.client.HTTPException):
                    return

    kills = 5
    for _ in range(kills):
        with served(folder) as server:
            reviewing = threading.Thread(target=review, args=(server,))
            reviewing.start()
            time.sleep(moments.uniform(0.1, 0.4))
            server.kill()
            reviewing.join()
    assert sum(map(len, confirmed.values())) > 5 * kills
    made = read_decisions(folder)["ana"]
    for name in ids:
        # A decision may be on the disk whose answer was cut off, and it is then made again.
        on_disk = [each.note for each in made if each.proposal == name]
        assert sorted(set(on_disk), key=int)[: len(confirmed[name])] == confirmed[name]
        assert len(on_disk) <= len(confirmed[name]) + kills
    assert set(standing(made)) == set(ids)
