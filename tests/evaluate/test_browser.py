"""The report in a real browser: every picture is drawn, and nothing is asked of the network."""

import http.server
import re
import shutil
import subprocess
import threading

import pytest
from patience import patience

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
    "--dump-dom",
]
# The page has no script of its own; this one says in the document how many pictures there are and how many were drawn.
PROBE = """<script>
addEventListener('load', () => {
  const all = [...document.images], drawn = all.filter(image => image.complete && image.naturalWidth > 0);
  const asked = performance.getEntriesByType('resource').filter(entry => !entry.name.startsWith('data:'));
  document.body.setAttribute('data-drawn', drawn.length + '/' + all.length);
  document.body.setAttribute('data-asked', asked.length);
});
</script></body>"""


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_report_has_no_broken_picture_and_no_request(make_job, tmp_path):
    from sfg_dist.pipeline.pipeline import run

    run(make_job())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script" not in page
    (tmp_path / "probe.html").write_text(page.replace("</body>", PROBE))
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            requests.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={tmp_path / 'profile'}",
                f"http://127.0.0.1:{server.server_port}/probe.html",
            ],
            capture_output=True,
            text=True,
            timeout=patience(120),
            check=True,
        )
        server.shutdown()
    drawn, total = map(int, re.search(r'data-drawn="(\d+)/(\d+)"', done.stdout).groups())
    assert drawn == total > 4
    assert re.search(r'data-asked="0"', done.stdout)
    assert set(requests) <= {"/probe.html", "/favicon.ico"}
