"""panva's oidc-provider: an OpenID provider that is not ours, over TLS on loopback (Node.js)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from hashlib import sha256
from http.cookiejar import CookieJar
from pathlib import Path
from ssl import create_default_context
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, HTTPSHandler, build_opener

import pytest
import trustme

SOURCE = Path(__file__).parent / "oidc_node"
_MANIFESTS = ("package.json", "package-lock.json")


def modules() -> Path:
    """Where the provider is installed; skips the test where it cannot be."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(
            "Node.js is not installed: logins have not been tried at a real identity provider"
            " (apt-get install nodejs npm)"
        )
    key = sha256(b"".join((SOURCE / name).read_bytes() for name in _MANIFESTS)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sealward"
    folder = cache / f"oidc-node-{key}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in _MANIFESTS:
            shutil.copy(SOURCE / name, folder)
        # Only what the lock file has the digest of; nothing that comes with it is run.
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder, capture_output=True, text=True, check=False, timeout=170,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(
                "the identity provider cannot be installed: logins have not been tried at a real"
                f" one (npm: {(done.stderr or done.stdout).strip().splitlines()[-1:]})"
            )
        (folder / "complete").touch()
    return folder / "node_modules"


class IdentityProvider:
    """A running provider. `people` are the claims of each subject, who logs in by that name."""

    def __init__(
        self,
        folder: Path,
        people: Mapping[str, Mapping[str, Any]],
        clients: list[dict[str, Any]],
        jwks: dict[str, Any],
        port: int = 0,
        authority: trustme.CA | None = None,
    ) -> None:
        self.authority = authority or trustme.CA()
        self.ca_file = folder / "provider-ca.pem"
        self.authority.cert_pem.write_to_path(self.ca_file)
        served = self.authority.issue_cert("localhost")
        self._process = subprocess.Popen(
            ["node", SOURCE / "provider.mjs"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "NODE_PATH": str(modules()), "NODE_ENV": "development"},
        )  # fmt: skip
        asked = {
            "key": served.private_key_pem.bytes().decode(),
            "cert": "".join(blob.bytes().decode() for blob in served.cert_chain_pems),
            "people": people, "clients": clients, "jwks": jwks, "port": port,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        assert said, self._process.stderr.read() if self._process.stderr else ""
        found = json.loads(said)
        self.issuer: str = found["issuer"]
        self.port: int = found["port"]

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def log_in(self, url: str, subject: str) -> str:
        """Be the browser: log in at `url`, consent; return where the provider sends it at last."""
        context = create_default_context(cafile=str(self.ca_file))
        opener = build_opener(
            HTTPCookieProcessor(CookieJar()), HTTPSHandler(context=context), _NoRedirect()
        )
        form: dict[str, str] | None = None
        for _ in range(20):
            body = None if form is None else urlencode(form).encode()
            response = opener.open(url, body, timeout=20)
            if response.status in (302, 303):
                url, form = urljoin(url, response.headers["location"]), None
                if urlsplit(url).scheme == "http":
                    return url
                continue
            page = response.read().decode()
            assert response.status == 200, (response.status, page[:500])
            # The forms of devInteractions: first who, then whether they agree.
            if 'value="login"' in page:
                form = {"prompt": "login", "login": subject, "password": "any"}
            else:
                assert 'value="consent"' in page, page[:2000]
                form = {"prompt": "consent"}
        raise AssertionError("the provider never sent the browser back")


class _NoRedirect(HTTPRedirectHandler):
    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        return fp

    http_error_303 = http_error_302
