# What `sealward vault setup` and `sealward vault secret-id` need, so that nobody needs a root token
# for them after the first time. For a person, on demand: who holds it decides who may log in.

path "sys/mounts" {
  capabilities = ["read"]
}
path "sys/mounts/sealward/transit" {
  capabilities = ["create", "update"]
}
path "sys/mounts/sealward/pki" {
  capabilities = ["create", "update"]
}
path "sys/auth" {
  capabilities = ["read"]
}
path "sys/auth/sealward-approle" {
  capabilities = ["create", "update", "sudo"]
}
path "sys/auth/sealward-cert" {
  capabilities = ["create", "update", "sudo"]
}
path "sys/policies/acl/sealward-*" {
  capabilities = ["create", "update", "read"]
}
path "sealward/pki/roles/+" {
  capabilities = ["create", "update", "read"]
}
path "sealward/pki/issuers" {
  capabilities = ["list"]
}
path "sealward/pki/issuers/generate/root/internal" {
  capabilities = ["create", "update"]
}
path "sealward/pki/issuer/+" {
  capabilities = ["create", "update", "read"]
}
path "auth/sealward-approle/role/+" {
  capabilities = ["create", "update", "read"]
}
path "auth/sealward-approle/role/+/role-id" {
  capabilities = ["read"]
}
# A secret id leaves Vault wrapped, or not at all.
path "auth/sealward-approle/role/+/secret-id" {
  capabilities     = ["create", "update"]
  min_wrapping_ttl = "1s"
  max_wrapping_ttl = "24h"
}
path "auth/sealward-approle/role/+/secret-id-accessor/destroy" {
  capabilities = ["create", "update"]
}
path "auth/sealward-cert/certs/+" {
  capabilities = ["create", "update", "read"]
}
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
