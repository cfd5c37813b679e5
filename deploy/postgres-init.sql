-- Beside Dagster's own: both keep their schema's version in a table alembic_version.
CREATE DATABASE catalog;
