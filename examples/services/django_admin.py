"""Django's admin in one file: a whole WSGI application, with its database, its login and its static files.

The database is a file that goes with its container. A service of more than one container, or one whose data is to
last, has its database elsewhere.
"""

from __future__ import annotations

import http.cookiejar
import re
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import apothic

app = apothic.App("django")
USER, PASSWORD = "admin", "only for this example"


@app.wsgi_app(memory_mb=256)
def site() -> Any:
    """Set Django up, make its tables and a user, and return the application."""
    import django
    from django.conf import settings

    settings.configure(
        SECRET_KEY="only for this example",
        ALLOWED_HOSTS=["*"],  # the gateway has looked at the host already
        ROOT_URLCONF=__name__,
        STATIC_URL="static/",  # without a slash in front, so that the mount is put before it
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(tempfile.mkdtemp()) / "db.sqlite3"}
        },
        INSTALLED_APPS=[
            "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
            "django.contrib.sessions", "django.contrib.messages", "django.contrib.staticfiles",
        ],
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware", "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        USE_TZ=True,
    )  # fmt: skip
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application

    call_command("migrate", verbosity=0)
    User.objects.create_superuser(USER, password=PASSWORD)
    return get_wsgi_application()


def __getattr__(name: str) -> Any:
    """Return Django's `urlpatterns`, which can be made only once Django is set up."""
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.contrib import admin
    from django.contrib.staticfiles.views import serve
    from django.urls import path, re_path

    return [path("admin/", admin.site.urls), re_path(r"^static/(?P<path>.*)$", serve, {"insecure": True})]


def main() -> None:
    """Deploy it, and log in as a browser does."""
    url = site.get_web_url()
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    login = browser.open(url + "admin/").read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', login)
    style = re.search(r'href="([^"]+base\.css)"', login)
    assert token is not None and style is not None
    print(style[1], browser.open(urllib.parse.urljoin(url, style[1])).headers["Content-Type"])
    form = {"username": USER, "password": PASSWORD, "csrfmiddlewaretoken": token[1], "next": "/django/site/admin/"}
    with browser.open(url + "admin/login/", data=urllib.parse.urlencode(form).encode()) as answer:
        title = re.search(r"<title>([^<]+)</title>", answer.read().decode())
        print(urllib.parse.urlsplit(answer.url).path, title[1].strip() if title else "no title")


if __name__ == "__main__":
    main()
