"""The Cedar sandbox: schema and policies, a typed model of them, and what Cedar says about entities and requests."""
