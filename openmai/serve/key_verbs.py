"""Verbs of the keys: `openmai keys`."""

from openmai.base.verb import Verb

VERBS = {
    "create": Verb("openmai.serve.config:CreateKeyConfig", "openmai.serve.keys:create", "make an API key"),
    "list": Verb("openmai.serve.config:KeyConfig", "openmai.serve.keys:show", "keys, their limits and what they have used"),
    "revoke": Verb("openmai.serve.config:RevokeKeyConfig", "openmai.serve.keys:revoke", "let a key end"),
}
