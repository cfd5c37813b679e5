"""DR drills: a fault in staging or its stand-in, a recovery from our own backups, and a report of how long it took. docs/dr-plan.md."""
