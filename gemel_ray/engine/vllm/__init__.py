"""All that knows vLLM: nothing else imports it. docs/insides.md lists what is used of its insides."""
