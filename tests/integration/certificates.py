"""Certificates for the tests, made by the openssl command."""

import shutil
import ssl
import subprocess

import pytest

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(*arguments):
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl")
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """One that signs certificates, and its own file."""

    def __init__(self, folder, name="authority"):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        openssl("req", "-x509", *KEY, "-keyout", self.key, "-out", self.file, "-days", 30, "-subj", f"/CN={name}")

    def issue(self, name, names="DNS:localhost,IP:127.0.0.1", days=30):
        """(certificate, key) of a server; `days` may lie in the past."""
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self.key, "-CAcreateserial", "-days", days,
                "-extfile", extensions, "-out", certificate)
        return certificate, key

    def trusting(self):
        """A client's context."""
        return ssl.create_default_context(cafile=self.file)


def serving(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
