"""Ranking: which entities a mention may mean, judged by names, examples, descriptions and pictures.

    words.py     how strings are compared
    postings.py  an inverted index, memory-mapped or in memory
    sharing.py   which examples' mentions hold all words of another
    names.py     names and aliases by words, initials, trigrams
    examples.py  what the solved examples say of a mention and of an entity
    descriptions.py  what entities are described as, as vectors
    years.py     years of a text against those of a description
    triples.py   the facts of a knowledge graph, by ids
    connections.py  facts that a text tells, and entities that are connected with others in it
    towers.py    a trained retrieval: a mention and an entity with its facts as vectors
    teaching.py  it taught on the examples
    retrieval.py it at work, and how its files come about
    cases.py     a mention that is asked about, and what is known of it
    features.py  what speaks for a candidate, in groups of features
    evidence.py  candidates and their features
    ranker.py    a small network over the features of all candidates
    reasons.py   why the first candidate is put before the second, in words
    context.py   how texts' vectors are bent towards descriptions, taught by the examples
    fitting.py   the network fitted on the examples themselves, when a workspace is built
    ranking.py   all of it at work, behind Retrieve

Knows nothing of the language model: what it says is joined to this in Generate.
"""
