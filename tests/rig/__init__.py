"""Real parts for tests: loop devices, mounted file systems, busy writers, servers."""
