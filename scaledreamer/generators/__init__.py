"""Text to 3D fields: one module a generator, its `Config`, its class and `create`."""
