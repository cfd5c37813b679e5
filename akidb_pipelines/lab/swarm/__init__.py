"""A real three-manager Docker Swarm on one machine: nodes are containers that run an engine each. What DR drills are rehearsed on."""
