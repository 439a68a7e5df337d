"""The page that shows an evaluation."""

from gemel_ray.report.cards import thumbnail
from gemel_ray.report.evaluated import write_report

__all__ = ["thumbnail", "write_report"]
