"""Pictures from outside: from bytes, a file, a store or an untrusted URL to pixels, within limits.

    limits.py     what one picture may cost, and the errors of pictures that cannot be read
    web.py        URLs: which hosts may be contacted; connections are kept alive
    fetching.py   many URLs at once, each host politely
    images.py     bytes to an upright RGB picture

Knows nothing of models, rows and stages.
"""
