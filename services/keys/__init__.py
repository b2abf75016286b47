"""The keys service: branch keys, certificates, the trust bundle."""
