"""Checks the manifests in deploy/ without a cluster.

    for fault in lint(Path("deploy")): print(fault)

Renders every kustomization and checks it against the schemas, what KubeRay and Kubernetes require beyond
them, the references between manifests, and the configuration they carry. Starts nothing, contacts no cluster.
"""

from gemel_ray.deploying.lint import RULES, Fault, lint

__all__ = ["RULES", "Fault", "lint"]
