"""The only door in: files of documents to DOCUMENT tables.

A file is a container of rows (JSON lines, one JSON document, CSV, Parquet, Arrow, tar), and a row has a
form: native or a released caption's, GEMEL's, WikiDiverse's, or that of WikiMEL, Richpedia-MEL and MIMIC. The
container is recognised by the file's ending and first bytes, the form by its content, not by a flag. What
cannot be understood is a document with an `error`, and what is not read is reported.
Knows nothing of models.
"""

from gemel_ray.readers.fields import BadRecord
from gemel_ray.readers.reading import BATCH, REST, documents
from gemel_ray.readers.sources import READ, count, files, first_look

__all__ = ["BATCH", "READ", "REST", "BadRecord", "count", "documents", "files", "first_look"]
