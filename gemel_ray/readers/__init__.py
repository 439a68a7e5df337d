"""The only door in: files of documents to DOCUMENT tables.

A file is a container of rows (JSON lines, one JSON document, Parquet), and a row has a form: ours, GEMEL's,
WikiDiverse's, or that of WikiMEL, Richpedia-MEL and MIMIC. Both are told by what they hold, not by a flag.
What cannot be understood is a document with an `error`, so that nothing that came in is lost. Knows nothing
of models.
"""

from gemel_ray.readers.fields import BadRecord
from gemel_ray.readers.reading import BATCH, REST, documents
from gemel_ray.readers.sources import READ, count, files

__all__ = ["BATCH", "READ", "REST", "BadRecord", "count", "documents", "files"]
