"""The only door in: files of documents to DOCUMENT tables.

A file is a container of rows (JSON lines, one JSON document, CSV, Parquet, Arrow, tar), and a row has a
form: ours or a released caption's, GEMEL's, WikiDiverse's, or that of WikiMEL, Richpedia-MEL and MIMIC. The
container is told by its name's end and first bytes, the form by what it holds, not by a flag. What cannot be
understood is a document with an `error`, and what is not read is said, so that nothing that came in is lost.
Knows nothing of models.
"""

from gemel_ray.readers.fields import BadRecord
from gemel_ray.readers.reading import BATCH, REST, count, documents, first_look
from gemel_ray.readers.sources import READ, files

__all__ = ["BATCH", "READ", "REST", "BadRecord", "count", "documents", "files", "first_look"]
