"""The starter: small real models and a set of logos that the demo runs on."""
