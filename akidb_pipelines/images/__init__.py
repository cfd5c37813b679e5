"""Images of drives: a block engine, the devices they come from and go to, captures, restores and reflashes."""
