"""The machines that pipelines work on: which there are (an Ansible inventory), and the way to them (SSH)."""
