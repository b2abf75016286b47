# What the keys service may do, for as long as its token lives. Nothing here exports, backs up,
# configures, trims or deletes a key, reads a secret, or makes a token.
#
# `+` stands for one part of a path: a `*` in the middle would never match, and at the end it would
# let in what comes after (…/config, …/trim). An empty list means any value: Vault compares texts
# and truth values, not numbers.

# Branch keys. A request without a context is refused here, and again by the key, which is derived.
path "sealward/transit/datakey/plaintext/+" {
  capabilities        = ["create", "update"]
  required_parameters = ["context"]
  allowed_parameters = {
    "context" = []
  }
}
path "sealward/transit/decrypt/+" {
  capabilities        = ["create", "update"]
  required_parameters = ["context"]
  allowed_parameters = {
    "context"    = []
    "ciphertext" = []
  }
}
path "sealward/transit/rewrap/+" {
  capabilities        = ["create", "update"]
  required_parameters = ["batch_input"]
  allowed_parameters = {
    "batch_input" = []
  }
}

# Key-encryption keys: their versions, a new version, and new keys that cannot be exported. Required
# parameters would be asked of reading too, so that a key is derived is checked by the service.
path "sealward/transit/keys" {
  capabilities = ["list"]
}
path "sealward/transit/keys/+" {
  capabilities = ["create", "update", "read"]
  allowed_parameters = {
    "type"    = ["aes256-gcm96"]
    "derived" = [true]
  }
}
path "sealward/transit/keys/+/rotate" {
  capabilities       = ["create", "update"]
  allowed_parameters = {}
}

# Certificates, by roles that bound the names. Not sign-verbatim, not issue: private keys are made
# where they are used.
path "sealward/pki/sign/+" {
  capabilities = ["create", "update"]
}

# The authority's replacement: a next one whose key stays in Vault, and which one signs.
path "sealward/pki/issuers" {
  capabilities = ["list"]
}
path "sealward/pki/issuer/+/json" {
  capabilities = ["read"]
}
path "sealward/pki/issuers/generate/root/internal" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "common_name"          = []
    "issuer_name"          = []
    "key_name"             = []
    "exclude_cn_from_sans" = [true]
    "key_type"             = ["ec"]
    "key_bits"             = []
    "max_path_length"      = []
    "ttl"                  = []
  }
}
path "sealward/pki/issuer/+" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "issuer_name"             = []
    "leaf_not_after_behavior" = ["truncate"]
  }
}
path "sealward/pki/config/issuers" {
  capabilities = ["create", "update"]
  allowed_parameters = {
    "default" = []
  }
}

# Its own token.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
