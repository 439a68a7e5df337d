"""Pictures from outside: from bytes, a file, a store or a stranger's URL to pixels, within limits.

    limits.py     what one picture may cost, and how it is said that it cannot be had
    web.py        URLs: who may be asked, over connections that are kept
    fetching.py   many URLs at once, each host politely
    images.py     bytes to a picture, upright and in RGB

Knows nothing of models, rows and stages.
"""
