"""Flask as it is. Links that it makes with `url_for` lead through the gateway."""

from __future__ import annotations

import urllib.parse
import urllib.request

from flask import Flask, redirect, render_template_string, request, url_for
from werkzeug.wrappers import Response

import apothic

app = apothic.App("notes")
PAGE = """<form method=post action={{ url_for('add') }}><input name=note></form>
{% for note in notes %}<p>{{ note }}{% endfor %}"""


@app.wsgi_app()
def site() -> Flask:
    """Make the app: once in each container."""
    flask = Flask(__name__)
    notes: list[str] = []

    @flask.get("/")
    def index() -> str:
        return render_template_string(PAGE, notes=notes)

    @flask.post("/add")
    def add() -> Response:
        notes.append(request.form["note"])
        return redirect(url_for("index"))

    return flask


def main() -> None:
    """Deploy it, and write a note: the answer is the page that the redirect leads to."""
    form = urllib.parse.urlencode({"note": "buy <tea>"}).encode()
    with urllib.request.urlopen(site.get_web_url() + "add", data=form) as answer:
        print(urllib.parse.urlsplit(answer.url).path, answer.read().decode())


if __name__ == "__main__":
    main()
