"""The report's page in a real browser, and its LaTeX in a real compiler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from records import some

from cl_bench.report.__main__ import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-quic")
PROBE = """<script>
const heads = [...document.querySelectorAll("table.sortable")[0].querySelectorAll("th button")];
const column = name => heads.findIndex(head => head.textContent === name);
const body = () => [...document.querySelectorAll("table.sortable")[0].tBodies[0].rows];
const read = name => body().map(row => row.cells[column(name)].textContent);
const told = {};
heads[column("ACC")].click(); told.down = read("ACC");
heads[column("ACC")].click(); told.up = read("ACC");
heads[column("method")].click(); told.names = read("method");
const search = document.getElementById("filter");
search.value = "ER lr=0.2"; search.dispatchEvent(new Event("input"));
told.shown = body().filter(row => row.checkVisibility()).map(row => row.cells[0].textContent);
search.value = ""; search.dispatchEvent(new Event("input"));
told.pictures = [...document.images].map(image => image.complete && image.naturalWidth > 0);
told.fetched = performance.getEntriesByType("resource").map(entry => entry.name.slice(0, 5));
told.overflow = document.documentElement.scrollWidth - window.innerWidth;
told.width = window.innerWidth;
document.title = JSON.stringify(told);
</script>"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return some(tmp_path / "outputs")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
@pytest.mark.parametrize("width", [1300, 500])  # a desktop's and the least that chromium takes
def test_the_page_works_in_a_browser(runs: Path, tmp_path: Path, width: int) -> None:
    """It sorts both ways, filters, shows all pictures, fetches nothing, fits a phone's width."""
    assert CHROMIUM is not None
    write_report([runs], [], "ewc", tmp_path)
    page = tmp_path / "report.html"
    page.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    own = ("--dump-dom", f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}")
    command = [CHROMIUM, *FLAGS, *own, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert found is not None, done.stdout[:2000]
    told = json.loads(unescape(found[1]))
    assert told["down"] == ["90.00 ± 0.00", "60.00 ± 10.00", "40.00", "40.00 ± 14.14"]
    assert told["up"] == ["40.00", "40.00 ± 14.14", "60.00 ± 10.00", "90.00 ± 0.00"]
    assert told["names"] == ["er", "er", "ewc", "joint"]
    assert told["shown"] == ["er"]
    assert len(told["pictures"]) > 6 and all(told["pictures"])
    assert set(told["fetched"]) <= {"data:"}
    assert told["overflow"] <= 0 and told["width"] == width


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the PATH")
def test_the_latex_compiles(runs: Path, tmp_path: Path) -> None:
    write_report([runs], ["linear"], None, tmp_path)
    lines = (r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}")
    text = "\n".join((*lines, r"\input{report}", r"\end{document}"))
    (tmp_path / "paper.tex").write_text(text)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
