# What an auditor may read: that keys are derived and not exportable, their versions and minimum
# versions, the roles and issuers of the CA, the logins and these policies. No key, no secret.

path "sealward/transit/keys" {
  capabilities = ["list"]
}
path "sealward/transit/keys/+" {
  capabilities = ["read"]
}
path "sealward/pki/roles" {
  capabilities = ["list"]
}
path "sealward/pki/roles/+" {
  capabilities = ["read"]
}
path "sealward/pki/issuers" {
  capabilities = ["list"]
}
path "sealward/pki/issuer/+" {
  capabilities = ["read"]
}
path "sealward/pki/config/issuers" {
  capabilities = ["read"]
}
path "auth/sealward-approle/role/+" {
  capabilities = ["read"]
}
path "auth/sealward-cert/certs/+" {
  capabilities = ["read"]
}
path "sys/policies/acl/sealward-*" {
  capabilities = ["read"]
}
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
