"""The import paths that the group's own scripts use; everything here is made elsewhere in the package."""
