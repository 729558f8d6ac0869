"""On the PYTHONPATH of jobs that start Ray themselves: RAY_START_HOOK names the function, which `ray start` calls."""


def leave_out(parameters, is_head):
    """No autoscaler and nothing that carries logs to a driver: both idle, and each is a start of Python a node."""
    parameters.no_monitor = True
    parameters.include_log_monitor = False
