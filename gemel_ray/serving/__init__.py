"""The online endpoint, except for what runs it: requests, limits, answers, metrics and logs.

    door       access control, before anything of a request is read
    requests   bytes, to a checked request, to DOCUMENT rows
    desk       admission, fair turns, deadlines, and replies
    app        the routes, over any `Linker` (online.py has Ray's)
    running    a segment's stages, fed by many callers at once
    load       a load generator

Knows nothing of Ray.
"""
