# What destroys: key versions that were retired, authorities that were replaced. A login of its own,
# with a token that lives for minutes and is given back after each use. It opens nothing.

path "sealward/transit/keys/+/config" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
    "deletion_allowed"       = []
  }
}
path "sealward/transit/keys/+/trim" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "min_available_version" = []
  }
}
path "sealward/transit/keys/+" {
  capabilities = ["delete"]
}
path "sealward/pki/issuer/+" {
  capabilities = ["delete"]
}
path "sealward/pki/keys" {
  capabilities = ["list"]
}
path "sealward/pki/key/+" {
  capabilities = ["delete"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
