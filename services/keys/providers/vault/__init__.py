"""The Vault provider: keys in Transit, certificates by PKI (Vault 1.14 or newer, OpenBao)."""
