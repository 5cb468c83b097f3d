"""From a field, or a mesh, to images."""
