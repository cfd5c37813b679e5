"""Real servers and stubs that tests start and stop. Nothing here listens beyond the loopback interface."""
