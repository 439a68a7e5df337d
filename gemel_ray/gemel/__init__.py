"""GEMEL's files, as its authors release them: read into a workspace, and written back."""
