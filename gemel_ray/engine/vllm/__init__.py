"""The only modules that import vLLM. docs/insides.md lists what they use of its internals."""
