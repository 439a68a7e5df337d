"""The online endpoint, but for what runs it: requests, limits, answers, metrics and logs.

    door       who may ask, before anything is read
    requests   bytes, to a checked request, to DOCUMENT rows
    desk       who is let in, how long, and what comes back
    app        the routes, over a `Linker` that is given (online.py has Ray's)
    running    a segment's stages, fed by many callers at once
    load       a load generator

Knows nothing of Ray.
"""
