"""The four Sealward services: `python -m services.<name>`.

grpcio reads its cipher list once, when it is first imported, and has no switch for the TLS version
(grpc/grpc#37305). Naming one TLS 1.2 suite that needs an RSA certificate leaves nothing but TLS 1.3
for our ECDSA certificates. This package is imported before any service module, so it is set here.
The runner dials itself with TLS 1.2 at start and refuses to run if that succeeds.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "AES128-SHA"
# gRPC's C core would otherwise write peer addresses and handshake failures to the log as free text.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
