"""The console's files: open, whole, served as what they are, and nothing in them that could run what a server said.

What the page does is in `test_gateway_console_browser.py`.
"""

import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from stack import Stack, open_stack

import memos_llm
from memos_llm.gateway import console

FOLDER = files(console)
SCRIPTS = [name for name in console.KINDS if name.endswith(".js")]
PAGE = FOLDER.joinpath("index.html").read_text()

STRICT = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Tags(HTMLParser):
    """Every tag of the page with its attributes, and whether an element that may hold code holds any."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._last = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._last = tag

    def handle_data(self, data: str) -> None:
        if self._last in ("script", "style") and data.strip():
            self.inline.append(data)


def tags() -> Tags:
    parser = Tags()
    parser.feed(PAGE)
    return parser


def addresses() -> set[str]:
    """Whatever the page loads, as paths."""
    named = {attrs.get("src") or attrs.get("href") for _, attrs in tags().found} - {None}
    return {f"/{name}" for name in named}


def code(name: str) -> str:
    """A script without its comments."""
    return re.sub(r"^\s*//.*$|(?<=[;{,]) // .*$", "", FOLDER.joinpath(name).read_text(), flags=re.MULTILINE)


async def test_every_file_is_served_to_anyone_and_strictly(stack: Stack) -> None:
    async with stack.client() as client:
        for path in console.PATHS:
            answer, head = await client.get(path), await client.head(path)
            assert (answer.status_code, head.status_code, head.content) == (200, 200, b""), path
            assert STRICT.items() <= dict(answer.headers).items(), path
            assert head.headers["content-length"] == answer.headers["content-length"] == str(len(answer.content))
        types = {path: (await client.get(path)).headers["content-type"] for path in console.PATHS}
    assert types["/console"] == "text/html; charset=utf-8"
    assert types["/console/console.css"] == "text/css; charset=utf-8"
    assert {types[f"/console/{name}"] for name in SCRIPTS} == {"text/javascript; charset=utf-8"}


async def test_with_keys_the_page_is_open_and_its_data_are_not(tmp_path: Path) -> None:
    keys = [{"id": "k", "sha256": "0" * 64, "scopes": ["read"]}]
    async with open_stack(tmp_path, config={"gateway": {"api_keys": keys}}) as stack, stack.client() as client:
        assert (await client.get("/console")).status_code == 200
        assert (await client.get("/admin/v1/status")).status_code == 401
        assert (await client.get("/console/nothing.js")).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/console", {}, 405),
        ("DELETE", "/console/console.js", {}, 405),
        ("GET", "/console/__init__.py", {}, 404),
        ("GET", "/console/../admin.py", {}, 404),
        ("GET", "/console/%2e%2e/admin.py", {}, 404),
        ("GET", "/console", {"host": "evil.example"}, 403),
        ("GET", "/console/console.js", {"origin": "http://evil.example"}, 403),
        ("GET", "/console", {"sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_nothing_else_is_served_there(
    method: str, path: str, headers: dict[str, str], status: int, stack: Stack
) -> None:
    async with stack.client() as client:
        request = client.build_request(method, "/", headers=headers)
        request.url = httpx.URL(stack.url).copy_with(raw_path=path.encode())
        assert (await client.send(request)).status_code == status


def test_every_file_that_is_named_is_there_and_every_file_is_named() -> None:
    imported = {f"/console/{name}" for each in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', code(each))}
    assert addresses() | imported | {"/console"} == console.PATHS
    here = {file.name for file in FOLDER.iterdir() if file.is_file() and not file.name.endswith(".py")}
    assert here == set(console.KINDS)


def test_every_file_goes_into_a_wheel() -> None:
    project = tomllib.loads((Path(memos_llm.__file__).parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["memos_llm.gateway.console"]
    assert [name for name in console.KINDS if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_nothing_in_the_page_runs_or_is_styled_in_line_or_comes_from_elsewhere() -> None:
    page = tags()
    assert page.inline == []
    attributes = {name for _, attrs in page.found for name in attrs}
    assert {
        name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "action", "target")
    } == set()
    assert {tag for tag, _ in page.found} & {"iframe", "object", "embed", "base"} == set()
    assert all(attrs.get("src") for tag, attrs in page.found if tag == "script")
    assert "//" not in "".join(addresses())
    assert re.findall(r"url\(|@import", FOLDER.joinpath("console.css").read_text()) == []


def test_every_field_has_a_label_and_none_has_a_name_that_a_form_would_send() -> None:
    fields = [attrs for tag, attrs in tags().found if tag in ("input", "select", "textarea")]
    labels = {attrs.get("for") for tag, attrs in tags().found if tag == "label"}
    assert {attrs["id"] for attrs in fields} == labels
    assert [attrs["name"] for attrs in fields if "name" in attrs] == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_shows_what_it_was_told_as_text_only(name: str) -> None:
    script = code(name)
    parsing = r"innerHTML|outerHTML|insertAdjacent|setHTML|write(?:ln)?\(|createContextualFragment|DOMParser|srcdoc"
    running = r"\beval\b|\bFunction\b|setTimeout\(\s*[\"'`]|setInterval\(\s*[\"'`]|\bimport\(|\.on[a-z]+\s*="
    placing = r"\.(?:href|src|action)\b|\.style\b|cssText|localStorage|document\.cookie|createTextNode"
    assert re.findall(f"{parsing}|{running}|{placing}", script) == []
    assert set(re.findall(r"setAttribute\(([^)]*)\)", script)) <= {'"aria-hidden", "true"'}
    made = {tag for tag in re.findall(r'(?:make|createElement)\(\s*"(\w+)"', script)}
    assert made & {"script", "style", "iframe", "img", "a", "link", "object", "embed", "form"} == set()


def test_the_page_says_where_the_token_is() -> None:
    assert "~/.local/state/memos_llm/admin_token" in PAGE
    assert "MEMOS_LLM_ADMIN_TOKEN" in PAGE


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_can_be_read_on_its_ground(theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", FOLDER.joinpath("theme.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[theme]))
    grounds = {kind: (colours[kind], colours[f"{kind}-ground"]) for kind in ("good", "bad", "warn")}
    pairs = [(colours[ink], colours[on]) for ink in ("ink", "quiet", "bad", "candidate") for on in ("ground", "card")]
    pairs += [*grounds.values(), (colours["ink"], colours["unknown-ground"])]
    assert [pair for pair in pairs if contrast(*pair) < 4.5] == []  # WCAG 2.2, 1.4.3
    assert contrast(colours["candidate"], colours["baseline"]) >= 3  # the two parts of a bar: 1.4.11
