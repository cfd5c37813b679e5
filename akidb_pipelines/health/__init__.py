"""Whether what the pipelines stand beside works: the observability stack, and staging. Only looked at, never touched."""
