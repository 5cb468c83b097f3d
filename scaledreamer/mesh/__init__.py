"""From a field to a coloured triangle mesh in a file."""
