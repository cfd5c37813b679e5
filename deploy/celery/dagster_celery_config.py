"""What `celery -A dagster_celery.app worker` reads, if this folder is on PYTHONPATH.

The broker's address, with its password, stays in the environment.
"""

import os

# A worker is where runs are: of Vault's secrets it takes none of alerts and login.
os.environ["AKIDB_CELERY_WORKER"] = "1"
broker_url = os.environ["AKIDB_CELERY_BROKER"]
result_backend = os.environ["AKIDB_CELERY_BACKEND"]
task_track_started = True
# A run may last for hours: one that is taken early waits behind it.
worker_prefetch_multiplier = 1
broker_connection_retry_on_startup = True
worker_hijack_root_logger = False
