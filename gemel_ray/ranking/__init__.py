"""Ranking: which entities a mention may mean, judged by names, examples, descriptions and pictures.

    words.py     how strings are compared, and the years in them
    postings.py  an inverted index, memory-mapped or in memory
    names.py     names and aliases by words, initials, trigrams
    examples.py  what the solved examples say of a mention and of an entity
    descriptions.py  what entities are described as, as vectors
    triples.py   the facts of a knowledge graph, by ids
    connections.py  facts that a text tells, and entities that are connected with others in it
    towers.py    a trained retrieval: a mention and an entity with its facts as vectors
    retrieval.py it at work, and how its files come about
    features.py  a mention that is asked about, and what speaks for a candidate, in groups of features
    evidence.py  candidates and their features
    ranker.py    small networks over the features of all candidates, and why they put one first
    context.py   what the examples teach of how texts and entities fit
    leaving_out.py  which examples are hidden while it is fitted on one of them
    fitting.py   the networks fitted on the examples themselves, when a workspace is built
    making.py    a workspace's ranking made
    ranking.py   all of it at work, behind Retrieve
    joining.py   what it says joined to what the language model says

Knows nothing of the language model: what it says is joined to this in Generate.
"""
