"""The starter: small real models, and the set of logos that the demo links."""
