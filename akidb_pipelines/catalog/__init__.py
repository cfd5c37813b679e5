"""What exists, as rows: releases, the outcome of checks, findings. Facts about artifacts; the artifacts are in the store."""
