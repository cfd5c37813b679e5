"""Backups of what staging is made of: dumps of its databases, Terraform state, dashboards. docs/backups.md tells how to use them."""
