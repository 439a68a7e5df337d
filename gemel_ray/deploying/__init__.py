"""The manifests in deploy/, checked before a cluster is asked.

    for fault in lint(Path("deploy")): print(fault)

Renders every kustomization and holds it against the schemas, what KubeRay and Kubernetes ask beyond them,
what the manifests say of each other, and the configuration they carry. Starts nothing; no cluster is asked.
"""

from gemel_ray.deploying.lint import RULES, Fault, lint

__all__ = ["RULES", "Fault", "lint"]
