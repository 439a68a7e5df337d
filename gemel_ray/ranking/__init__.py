"""Ranking: the entities that a mention may mean, by names, examples, descriptions and pictures.

    words.py     how strings are compared, and the years in them
    sorting.py   pairs sorted in a fixed memory, by runs on disk
    postings.py  an inverted index, memory-mapped
    names.py     names and aliases by words, initials, trigrams
    examples.py  the solved examples of a mention and of an entity
    descriptions.py  vectors of the entities' descriptions
    triples.py   the facts of a knowledge graph, by ids
    connections.py  facts that occur in a text, and connections between entities that it names
    towers.py    a trained retrieval: a mention and an entity with its facts as vectors
    retrieval.py the trained retrieval in use, and its files
    features.py  the features of a candidate, in groups
    evidence.py  candidates and their features
    ranker.py    small networks over the features of all candidates, and their explanations
    context.py   what is learned from the examples about texts and entities
    leaving_out.py  which examples are hidden while it is fitted on one of them
    fitting.py   the networks fitted on the examples themselves, when a workspace is built
    making.py    makes a workspace's ranking
    default.py   the default ranker, for a workspace with few examples or none
    default_maker.py  fits it again on public data
    ranking.py   the ranking in use, by Retrieve
    joining.py   what it says joined to what the language model says

Knows nothing of the language model: what it says is joined to this in Generate.
"""
